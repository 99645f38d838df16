"""Where a break is made: a piece of code, found by what it says and not by how it is written or where its file lies.

A place is a dotted module and a name in it, a function or a class, or the module alone:
``dpfpl_common.privacy.noise:SystemNoise.add``.

The piece of code is Python, an expression or statements in a row, and is there exactly once. Spaces, comments and line
breaks do not matter. In it

- ``_1`` to ``_9`` stand for any expression, the same number for the same one; what replaces the piece may use them,
  and ``_0``, which is the whole piece;
- ``call(...)`` and ``call(first, ...)`` are calls with any (further) arguments.
"""

import ast
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["AnchorError", "broken", "module_file"]

NOT_CODE = ("ctx", "kind", "type_comment")
PLACEHOLDER = re.compile(r"_[0-9]")


class AnchorError(Exception):
    """A place or a piece of code that is not there, or not just once."""


def module_file(root: Path, place: str) -> Path:
    """The file of the place's module, in whichever distribution it is."""
    path = place.split(":")[0].replace(".", "/")
    found = [*root.glob(f"*/src/{path}.py"), *root.glob(f"*/src/{path}/__init__.py")]
    if len(found) != 1:
        raise AnchorError(f"there is no module {place.split(':')[0]}{_elsewhere(root, place)}")
    return found[0]


def broken(root: Path, place: str, old: str, new: str) -> str:
    """The text of the place's module with ``new`` instead of ``old``.

    Raises:
        AnchorError: the place is not there, or the piece of code not exactly once.
        SyntaxError: ``old`` or ``new`` is no Python.
    """
    module = ast.parse(module_file(root, place).read_text(encoding="utf-8"))
    scope = _scope(root, module, place)
    wanted, instead = ast.parse(old).body, ast.parse(new).body
    if _is_expression(wanted) and _is_expression(instead):
        found, nodes = list(_expressions(scope, wanted[0].value)), [instead[0].value]
    else:
        found, nodes = list(_statements(scope, wanted)), instead
    if len(found) != 1:
        raise AnchorError(f"{old!r} is there {len(found)} times in {place}, not once")
    found[0].replace(nodes)
    return ast.unparse(ast.fix_missing_locations(module)) + "\n"


def _is_expression(body: Sequence[ast.stmt]) -> bool:
    return len(body) == 1 and isinstance(body[0], ast.Expr)


def _scope(root: Path, module: ast.Module, place: str) -> ast.AST:
    """The function, class or module of that name."""
    scopes: list[ast.AST] = [module]
    for name in filter(None, place.partition(":")[2].split(".")):
        scopes = [node for scope in scopes for node in _defined(scope) if node.name == name]
    if len(scopes) != 1:
        raise AnchorError(f"there are {len(scopes)} of the name {place}{_elsewhere(root, place)}")
    return scopes[0]


def _defined(scope: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """What is defined in a scope, under conditions too."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
        elif isinstance(child, ast.stmt):
            yield from _defined(child)


def _elsewhere(root: Path, place: str) -> str:
    """A hint for who moved the code: the files that define the place's last name."""
    name = re.split(r"[:.]", place)[-1]
    defined = re.compile(rf"^\s*(?:async def|def|class) {re.escape(name)}\b", re.MULTILINE)
    files = [path for path in root.glob("*/src/dpfpl_*/**/*.py") if defined.search(path.read_text(encoding="utf-8"))]
    return f"; {name} is in {', '.join(str(path.relative_to(root)) for path in sorted(files))}" if files else ""


@dataclass(frozen=True)
class _Found:
    """``count`` nodes from ``start`` on in a node's field, which is a list; or the field itself."""

    owner: ast.AST
    field: str
    start: int
    count: int
    meant: dict[str, ast.expr]

    def replace(self, nodes: Sequence[ast.AST]) -> None:
        value = getattr(self.owner, self.field)
        is_list = isinstance(value, list)
        piece = value[self.start : self.start + self.count] if is_list else [value]
        filled = [each for node in nodes for each in _listed(_Filled(self.meant, piece).visit(node))]
        if is_list:
            value[self.start : self.start + self.count] = filled
        else:
            setattr(self.owner, self.field, filled[0])


def _listed(nodes: ast.AST | list[ast.AST]) -> list[ast.AST]:
    return nodes if isinstance(nodes, list) else [nodes]


class _Filled(ast.NodeTransformer):
    """Puts what the placeholders stand for in their places."""

    def __init__(self, meant: dict[str, ast.expr], piece: Sequence[ast.AST]) -> None:
        self._meant, self._piece = meant, piece

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.AST]:
        """``_0`` as a statement of its own may be several."""
        is_piece = isinstance(node.value, ast.Name) and node.value.id == "_0" and isinstance(self._piece[0], ast.stmt)
        return copy.deepcopy(list(self._piece)) if is_piece else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not PLACEHOLDER.fullmatch(node.id):
            return node
        if node.id == "_0" and isinstance(self._piece[0], ast.expr):
            return copy.deepcopy(self._piece[0])
        if node.id not in self._meant:
            raise AnchorError(f"{node.id} is not in the piece of code that is replaced")
        return copy.deepcopy(self._meant[node.id])


def _expressions(scope: ast.AST, wanted: ast.expr) -> Iterator[_Found]:
    for owner in ast.walk(scope):
        for field, value in ast.iter_fields(owner):
            for start, child in enumerate(value if isinstance(value, list) else [value]):
                is_read = isinstance(child, ast.expr) and isinstance(getattr(child, "ctx", ast.Load()), ast.Load)
                if is_read and (meant := _meant([wanted], [child])) is not None:
                    yield _Found(owner, field, start, 1, meant)


def _statements(scope: ast.AST, wanted: Sequence[ast.stmt]) -> Iterator[_Found]:
    for owner in ast.walk(scope):
        for field, value in ast.iter_fields(owner):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                for start in range(len(value) - len(wanted) + 1):
                    if (meant := _meant(wanted, value[start : start + len(wanted)])) is not None:
                        yield _Found(owner, field, start, len(wanted), meant)


def _meant(wanted: Sequence[ast.AST], there: Sequence[ast.AST]) -> dict[str, ast.expr] | None:
    """What the placeholders stand for; None if these nodes are others than those wanted."""
    meant: dict[str, ast.expr] = {}
    return meant if all(_like(one, other, meant) for one, other in zip(wanted, there, strict=True)) else None


def _like(wanted: object, there: object, meant: dict[str, ast.expr]) -> bool:
    if isinstance(wanted, ast.Name) and PLACEHOLDER.fullmatch(wanted.id):
        if not isinstance(there, ast.expr):
            return False
        return ast.unparse(meant.setdefault(wanted.id, there)) == ast.unparse(there)
    if isinstance(wanted, list) and isinstance(there, list):
        return len(wanted) == len(there) and all(_like(*pair, meant) for pair in zip(wanted, there, strict=True))
    if type(wanted) is not type(there):
        return False
    if not isinstance(wanted, ast.AST):
        return wanted == there
    if isinstance(wanted, ast.Call) and wanted.args and _is_ellipsis(wanted.args[-1]):
        first = wanted.args[:-1]
        return _like(wanted.func, there.func, meant) and _like(first, there.args[: len(first)], meant)
    fields = [field for field in wanted._fields if field not in NOT_CODE]
    return all(_like(getattr(wanted, field, None), getattr(there, field, None), meant) for field in fields)


def _is_ellipsis(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
