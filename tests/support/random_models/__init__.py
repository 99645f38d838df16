"""Tiny models of every known family, from the installed transformers' own architectures."""

__all__: list[str] = []
