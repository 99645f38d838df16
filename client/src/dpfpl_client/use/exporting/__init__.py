"""A learned prompt as a folder that stock tools load."""

__all__: list[str] = []
