"""Attacks on what a training releases: how much somebody really learns, beside what the accountant says at most."""

__all__: list[str] = []
