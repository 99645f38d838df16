"""How exactly a site computes the gradients that it then clips."""

from dataclasses import dataclass

__all__ = ["PRECISIONS", "GradientSettings"]

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class GradientSettings:
    """How exactly one example's gradient is computed; it is clipped afterwards, so the sensitivity is the same.

    Attributes:
        precision: ``float32``, or ``bfloat16`` to round the factors of large products on the way back.
        classes: how many classes of an example's loss count towards its gradient: its label and those that the model
            confuses it with most, so at least 2; 0 for all.
    """

    precision: str = "float32"
    classes: int = 0
