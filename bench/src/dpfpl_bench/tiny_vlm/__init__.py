"""A tiny generative vision-language model that answers questions about drawn pictures, and sites that ask them."""

__all__: list[str] = []
