"""The operator's live page: what an experiment is doing, in a browser, read-only."""

__all__: list[str] = []
