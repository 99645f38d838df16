"""Simulation in process, floors, the demo and the training of the embedded model."""

__all__: list[str] = []
