"""The code of an exported model card, as its reader would run it."""

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

__all__ = ["code_blocks", "packages_named", "run_card"]


def code_blocks(folder: Path) -> list[str]:
    """Every block of Python in the folder's README.md."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def packages_named(folder: Path) -> set[str]:
    """The packages that the card says its code needs."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\b[Ii]t\s+needs\s+((?:`[\w-]+`(?:,| and)?\s?)+)", card)
    return set(re.findall(r"`([\w-]+)`", " ".join(listed)))


def run_card(folder: Path) -> list[Any]:
    """What the blocks print, one after the other in one namespace, verbatim and in this process."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        names: dict[str, Any] = {}
        for block in code_blocks(folder):
            exec(block, names)
    return [ast.literal_eval(line) for line in printed.getvalue().splitlines()]
