"""Formulas over named values, written once: the text that a reader sees is the text that is computed.

A formula is a small part of Python's expression syntax: names, ``.key``, ``[0]``, ``["key"]``, numbers, ``+ - * /`` and
the functions below. It is parsed, never executed. A missing value (None) makes the whole formula None; the functions
leave missing values out.
"""

import ast
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

__all__ = ["FUNCTIONS", "evaluate", "names_in", "wilson"]

Z95 = statistics.NormalDist().inv_cdf(0.975)


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share that was observed in ``count`` independent tries.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    middle = share + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _posterior(epsilon: float) -> float:
    """Largest certainty after seeing a release for who was undecided (one half) before; delta set aside."""
    return 1 / (1 + math.exp(-epsilon))


def _ceiling(value: float) -> int:
    return math.ceil(round(value, 9))


def _mean(*values: float) -> float:
    return statistics.fmean(values)


FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "mean": _mean,
        "median": lambda *values: statistics.median(values),
        "sum": lambda *values: sum(values),
        "min": lambda *values: min(values),
        "max": lambda *values: max(values),
        "count": lambda *values: len(values),
        "size": len,
        "ceiling": _ceiling,
        "posterior": _posterior,
        "wilson_low": lambda share, count: wilson(share, count)[0],
        "wilson_high": lambda share, count: wilson(share, count)[1],
    }
)
"""What a formula may call. Missing arguments are left out; without any argument left the value is missing."""

_EMPTY_IS_ZERO = frozenset({"sum", "count"})
_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: lambda a, b: a + b,
        ast.Sub: lambda a, b: a - b,
        ast.Mult: lambda a, b: a * b,
        ast.Div: lambda a, b: a / b if b else None,
    }
)


def evaluate(formula: str, values: Mapping[str, Any]) -> Any:
    """The value of a formula, or None where something that it needs is missing.

    Raises:
        ValueError: it is no formula.
    """
    return _value(_parsed(formula), values)


def names_in(formula: str) -> list[str]:
    """The names that a formula reads, each once, in the order in which they appear."""
    found = [(n.lineno, n.col_offset, n.id) for n in ast.walk(_parsed(formula)) if isinstance(n, ast.Name)]
    return list(dict.fromkeys(name for *_, name in sorted(found) if name not in FUNCTIONS))


@lru_cache(maxsize=4096)
def _parsed(formula: str) -> ast.expr:
    return ast.parse(formula, mode="eval").body


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.Name(id=name):
            return values.get(name)
        case ast.Attribute(value=inner, attr=key):
            return _item(_value(inner, values), key)
        case ast.Subscript(value=inner, slice=ast.Constant(value=str() | int() as key)):
            return _item(_value(inner, values), key)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            value = _value(inner, values)
            return None if value is None else -value
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            pair = (_value(left, values), _value(right, values))
            return None if None in pair else _OPERATIONS[type(operation)](*pair)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _called(name, [_value(argument, values) for argument in arguments])
    raise ValueError(f"no formula: {ast.unparse(node)}")


def _item(container: Any, key: str | int) -> Any:
    if isinstance(container, Mapping):
        return container.get(key)
    if isinstance(container, Sequence) and isinstance(key, int) and 0 <= key < len(container):
        return container[key]
    return None


def _called(name: str, arguments: Sequence[Any]) -> Any:
    if name.startswith("wilson") and None in arguments:
        return None
    present = [argument for argument in arguments if argument is not None]
    if not present and name not in _EMPTY_IS_ZERO:
        return None
    return FUNCTIONS[name](*present)
