"""What both sides of a DP-FPL federation run: configuration, payloads, clipping, noise, accounting. No torch."""

__all__ = ["PROTOCOL_VERSION", "__version__"]

__version__ = "0.1.0"

PROTOCOL_VERSION = 4
"""Version of the messages between strategy, ClientApp and agent; both ends refuse another one."""
