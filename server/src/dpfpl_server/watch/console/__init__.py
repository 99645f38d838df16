"""The operator's live page: what an experiment is doing, in a browser, read-only."""
