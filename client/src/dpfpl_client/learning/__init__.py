"""Prompt learning at a site, pure: no Flower, no gRPC, no files but the model's."""

__all__: list[str] = []
