"""A site's prompt over HTTP."""

__all__: list[str] = []
