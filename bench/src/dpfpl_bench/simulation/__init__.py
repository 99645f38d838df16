"""Whole federations in one process."""

__all__ = ["SHOWN"]

SHOWN = {
    "method": "dpfpl",
    "rank": "4",
    "sites": "4",
    "partition": "pathological",
    "rounds": "10",
    "local_steps": "4",
    "floors": "all",
    "delta": "1e-05",
    "clipping_norm": "0.1",
}
"""Defaults as --help shows them: those of ``RunSettings``, whose import takes seconds. A test compares them."""
