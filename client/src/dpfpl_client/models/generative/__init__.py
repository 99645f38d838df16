"""Generative vision-language models: the context as soft tokens between the picture and the question."""

__all__: list[str] = []
