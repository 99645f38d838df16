"""Simulated federations, in Python and on the command line; the demo, sweeps and attacks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpfpl_bench.simulation.simulate import simulate

__all__ = ["simulate"]


def __getattr__(name: str) -> Any:
    if name == "simulate":  # torch takes seconds, which --help does not wait for
        from dpfpl_bench.simulation.simulate import simulate

        return simulate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
