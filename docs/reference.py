"""What the site generates of the code when it is built: commands, settings, error codes and the modules' pages.

A hook of mkdocs (``hooks`` in mkdocs.yml). Nothing here is written by hand: a page changes with the code.
"""

import ast
import html
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Docstring, DocstringSectionKind
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import TypeAdapter
from typer.cli import get_docs_for_click
from typer.main import get_command

from dpfpl_bench.cli import app as bench
from dpfpl_bench.sweep.sweep import Sweep
from dpfpl_client.cli.main import app as client
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.experiment import Experiment
from dpfpl_common.policy import Policy
from dpfpl_server.cli.main import app as server
from dpfpl_server.report.roi import RoiInputs

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {
    "common": "what both sides run: settings, privacy, messages",
    "client": "a site: agent, learning, models, data, use of the prompt",
    "server": "the operator: rounds, sites, runs, report",
    "bench": "simulations, sweeps, attacks, the demo",
}
FILES = {
    "experiment.toml": (
        Experiment,
        "What one training is. The operator writes it; each site's policy decides whether it takes part.",
    ),
    "site.toml": (
        SiteSettings,
        "A site's own settings. They come with the kit; `dpfpl-client init` fills in where the images are.",
    ),
    "policy.toml": (Policy, "What a site allows at most. A rule that you leave out takes the value below."),
    "sweep.toml": (
        Sweep,
        "For `dpfpl-bench sweep`: what all runs share, and a grid. Other tables are those of experiment.toml.",
    ),
    "roi.toml": (RoiInputs, "For `dpfpl-server report --roi`; `dpfpl-server roi-template` writes one to fill in."),
}

NOT_IN_A_FILE = {("SiteSettings", "folder"), ("SiteSettings", "simulation")}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {"cli": commands(), "settings": settings(), "errors": errors()}
    pages |= {f"api/{name}": modules(name, says) for name, says in DISTRIBUTIONS.items()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    files.append(File.generated(config, "contributing.md", content=contributing()))
    return files


def contributing() -> str:
    """CONTRIBUTING.md; its links into docs/ stay, what lies elsewhere is named."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^]]*)\]\((?!docs/|https?:)[^)]*\)", r"`\1`", text).replace("](docs/", "](")


def commands() -> str:
    """Every command with its options, from Typer."""
    parts = ["# Commands\n\nWhat `--help` prints, for all three programs."]
    for name, app in (("dpfpl-server", server), ("dpfpl-client", client), ("dpfpl-bench", bench)):
        command = get_command(app)
        context = command.make_context(name, [], resilient_parsing=True)
        text = get_docs_for_click(obj=command, ctx=context, name=name)
        parts.append(text.replace("\n#", "\n##").replace("# ", "## ", 1).replace("```console\n$ ", "```\n"))
    return "\n\n".join(parts)


def settings() -> str:
    """Every key of every file, from the pydantic models: type, default, limits, meaning."""
    parts = ["# Settings\n\nEvery key of every file. An unknown key or an impossible value is an error that names it."]
    seen: set[str] = set()
    for name, (model, says) in FILES.items():
        schema = TypeAdapter(model).json_schema()
        schema["description"] = "\n".join(inspect.cleandoc(each.__doc__ or "") for each in reversed(model.__mro__[:-1]))
        parts += [f"## {name}", says, *_tables(schema, schema.get("$defs", {}), "", seen)]
    return "\n\n".join(parts)


def _tables(schema: dict[str, Any], known: dict[str, Any], table: str, seen: set[str]) -> Iterator[str]:
    """The keys of one table, then its own tables, each name once on the page."""
    meanings = _attributes(schema.get("description", ""))
    rows, inner = [], []
    for key, value in schema["properties"].items():
        target = known.get(value.get("$ref", "").rpartition("/")[2], {})
        if (schema["title"], key) in NOT_IN_A_FILE:
            continue
        if target and target["title"] != "Estimate":
            inner.append((f"{table}.{key}".lstrip("."), target))
            continue
        default = "required" if key in schema.get("required", ()) else _default(value.get("default"))
        rows.append(f"| `{key}` | {_kind(value)} | {default} | {meanings.get(key, '')} |")
    if rows:
        heading = [f"### [{table}]", schema.get("description", "").partition("\n\n")[0]] if table else []
        yield "\n\n".join([*heading, "\n".join(["| Key | Value | Default | Meaning |", "|---|---|---|---|", *rows])])
    for name, target in inner:
        if name not in seen:
            seen.add(name)
            yield from _tables(target, known, name, seen)


def _attributes(text: str) -> dict[str, str]:
    """What a class's docstring says of each attribute, its inherited ones included."""
    return {
        item.name: " ".join(item.description.split()).replace("``", "`").replace("|", "\\|")
        for section in Docstring(inspect.cleandoc(text)).parse("google", warnings=False)
        if section.kind is DocstringSectionKind.attributes
        for item in section.value
    }


def _kind(value: dict[str, Any]) -> str:
    """Type and limits in words."""
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(part) for part in value["anyOf"] if part.get("type") != "null"))
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if value.get("type") == "array":
        return f"list of {_kind(value.get('items', {}))}"
    if "$ref" in value:
        return "a number, or `{ low = 1, expected = 2, high = 3 }`"
    names = {"number": "number", "integer": "whole number", "boolean": "`true`, `false`", "object": "table"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return ", ".join([names.get(value.get("type", ""), "text"), *limits])


def _default(value: object) -> str:
    """A default as it would stand in the file; what has none there is left out of it."""
    return "" if value is None else f"`{json.dumps(value)}`"


def errors() -> str:
    """Every code with what it says and advises, from the calls that raise it."""
    rows: dict[str, list[str]] = {}
    for distribution in DISTRIBUTIONS:
        for path in sorted((ROOT / distribution / "src").rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and (found := _said(node)):
                    code, *said = found
                    rows.setdefault(code, said)
    lines = [f"| `{code}` | {message} | {advice} |" for code, (message, advice) in sorted(rows.items())]
    head = (
        "# Error codes\n\nEvery error has a code that stays the same, says what was wrong and what to do. `{...}` "
        "stands for a name or value. [Troubleshooting](../howto/troubleshooting.md) goes further.\n"
    )
    return "\n".join([head, "| Code | Says | Advice |", "|---|---|---|", *lines])


def _said(call: ast.Call) -> list[str] | None:
    """Code, message and advice of ``SomeError(code=...)``, ``Finding(level, check, message, code, advice)`` or
    ``_broken(code, rule, advice)``.
    """
    keys: dict[str | None, ast.expr] = {keyword.arg: keyword.value for keyword in call.keywords}
    if ast.unparse(call.func).endswith("Finding"):
        keys |= dict(zip(("level", "check", "message", "code", "advice"), call.args, strict=False))
    elif ast.unparse(call.func).endswith("_broken") and len(call.args) == 3:
        keys = {"code": call.args[0], "message": _broken_rule(call.args[1]), "advice": call.args[2]}
    elif not ast.unparse(call.func).endswith("Error"):
        return None
    code = keys.get("code")
    if not (isinstance(code, ast.Constant) and code.value):
        return None
    return [code.value, *(_text(keys.get(key)) for key in ("message", "advice"))]


def _broken_rule(rule: ast.expr) -> ast.expr:
    return ast.Constant(f"The site's policy does not allow it (rule {_text(rule)}).")


def _text(node: ast.expr | None) -> str:
    """A literal as it reads; what is put in stands as its name in braces, anything else as ``{...}``."""
    if node is None:
        return ""
    text = ""
    for part in node.values if isinstance(node, ast.JoinedStr) else [node]:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        else:
            named = isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name)
            text += f"{{{part.value.id}}}" if named else "{...}"
    return html.escape(text).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("\n", " ")


def modules(distribution: str, says: str) -> str:
    """A page with the docstrings of every module that lists public names."""
    source = ROOT / distribution / "src"
    parts = [f"# dpfpl-{distribution}\n\n{says[0].upper()}{says[1:]}."]
    for path in sorted(source.rglob("*.py")):
        if path.stem != "__main__" and "__all__" in path.read_text(encoding="utf-8"):
            dotted = ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
            parts.append(f"::: {dotted}")
    return "\n\n".join(parts)
