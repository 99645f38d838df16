"""Builds the API reference from the docstrings: one self-contained HTML page, from the sources without importing them.

python docs/api_reference.py --out runs/api.html
"""

import argparse
import ast
import html
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = ("common", "client", "server", "bench")
STYLE = """
body { max-width: 60rem; margin: 0 auto; padding: 1rem; font: 15px/1.5 system-ui, sans-serif; }
pre { white-space: pre-wrap; margin: .3rem 0 .8rem 1rem; font: inherit; } code { font: 13px ui-monospace, monospace; }
h2 { border-top: 1px solid #d1d9e0; padding-top: 1rem; }
h2, h3 { overflow-wrap: anywhere; }
h3 { margin-bottom: 0; }
nav { columns: 18rem; font-size: .9rem; }
"""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Dotted name and syntax tree of every hand-written module, in order."""
    for distribution in DISTRIBUTIONS:
        source = ROOT / distribution / "src"
        for path in sorted(source.rglob("*.py")):
            if path.stem.endswith(("_pb2", "_pb2_grpc")) or path.stem == "__main__":
                continue
            parts = path.relative_to(source).with_suffix("").parts
            yield (
                ".".join(parts[:-1] if parts[-1] == "__init__" else parts),
                ast.parse(path.read_text(encoding="utf-8")),
            )


def public_names(tree: ast.Module) -> list[str]:
    """What ``__all__`` lists."""
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert node.value is not None  # type: ignore[union-attr]
            return [str(name) for name in ast.literal_eval(node.value)]  # type: ignore[union-attr]
    return []


def members(node: ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public methods and properties."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
            yield inner


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """The line that declares it, without decorators and body."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}"


def described(node: ast.AST) -> str:
    """Its docstring as HTML."""
    text = (
        ast.get_docstring(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        else ""
    )
    return f"<pre>{html.escape(text)}</pre>" if text else ""


def page() -> str:
    """The whole reference."""
    index, parts = [], []
    for name, tree in modules():
        names = public_names(tree)
        index.append(f'<a href="#{name}">{name}</a><br>')
        parts.append(f'<h2 id="{name}">{name}</h2>{described(tree)}')
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in names:
                parts.append(f"<h3><code>{html.escape(signature(node))}</code></h3>{described(node)}")
                if isinstance(node, ast.ClassDef):
                    parts += [f"<p><code>.{html.escape(signature(m))}</code></p>{described(m)}" for m in members(node)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>DP-FPL API reference</title><style>{STYLE}</style></head><body><h1>API reference</h1>\n"
        f"<nav>{''.join(index)}</nav>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Build the API reference from the docstrings.")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(), encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
