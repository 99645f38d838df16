"""The benchmark of ``make bench``: what a step, a round and a site cost, against the usual ways to compute the same."""

__all__: list[str] = []
