"""What was aimed at, and whether this run reached it."""

from collections.abc import Mapping
from typing import Any

__all__ = ["targets"]

Steps = Mapping[str, Mapping[str, Any]]


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows {name, measured, target, met} of bench.json; what a quick run did not measure has no row."""
    rows: list[dict[str, Any]] = []

    def at_most(name: str, measured: float | None, limit: float) -> None:
        if measured is not None:
            rows.append({"name": name, "measured": measured, "target": f"<= {limit:g}", "met": measured <= limit})

    def at_least(name: str, measured: float | None, limit: float) -> None:
        if measured is not None:
            rows.append({"name": name, "measured": measured, "target": f">= {limit:g}", "met": measured >= limit})

    steps = result["steps"]
    for classes in steps:
        at_most(f"plain step over D, {classes} classes", _ratio(steps, classes, "fast"), 0.45)
    for classes, limit in (("10", 4.5), ("100", 5.5)):
        at_most(f"exact private step over D, {classes} classes", _ratio(steps, classes, "private"), limit)
        at_least(f"exact private step, share of a product's rate, {classes} classes", _share(result, classes), 0.85)
    for classes in steps:
        at_most(f"estimated private step over D, {classes} classes", _ratio(steps, classes, "private_few_bfloat16"), 2)
    at_most("estimated private step of 160 examples over D", _ratio(steps, "10", "private_160_few_bfloat16"), 8)
    for classes, limit in (("10", 40), ("100", 15)):
        at_least(
            f"published replica over the exact private step, {classes} classes",
            _quotient(steps, classes, "published_replica", "private"),
            limit,
        )
    at_least("naive expansion over the exact private step, 10 classes", _quotient(steps, "10", "naive", "private"), 25)
    memory = result.get("memory", {})
    if memory.get("private") and memory.get("naive"):
        at_most("memory of the exact private step over naive expansion's", memory["private"] / memory["naive"], 1 / 20)
    for check in result.get("equality", []):
        at_most(f"relative error, {check['name']}", check["error"], check["limit"])
    cache = result.get("cache", {})
    if cache:
        at_most("image features, cold cache over the image tower's own forward", cache["cold_over_forward"], 1.1)
        at_most("image features, warm cache over cold", cache["warm_over_cold"], 0.05)
    deployed = result.get("deployed")
    if deployed:
        at_most("deployed round over 1.2 empty rounds and the slowest site", deployed["ratio"], 1.0)
    if result.get("simulation"):
        at_most("bytes a simulated site", result["simulation"][-1]["bytes_a_site"], 2**20)
    return rows


def _ratio(steps: Steps, classes: str, name: str) -> float | None:
    row = steps.get(classes, {}).get(name)
    return None if row is None else float(row["ratio"])


def _quotient(steps: Steps, classes: str, above: str, below: str) -> float | None:
    one, other = _ratio(steps, classes, above), _ratio(steps, classes, below)
    return None if one is None or other is None else one / other


def _share(result: Mapping[str, Any], classes: str) -> float | None:
    row = result["steps"].get(classes, {}).get("private")
    if row is None:
        return None
    return float(row["flops"] / row["cpu_seconds"] / result["rate"]["chosen"])
