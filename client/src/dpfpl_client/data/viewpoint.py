"""How a site sees its images: the four viewpoints of the paper's Figure 1."""

from PIL import Image

from dpfpl_common.errors import ConfigError

__all__ = ["VIEWPOINTS", "apply_viewpoint", "check_viewpoint"]

VIEWPOINTS = ("upright", "upside_down", "rotated", "mirrored")

_TRANSPOSE = {
    "upside_down": Image.Transpose.ROTATE_180,
    "rotated": Image.Transpose.ROTATE_90,
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
}


def apply_viewpoint(image: Image.Image, viewpoint: str) -> Image.Image:
    """Turn the image: by 180 degrees, by 90 counter-clockwise, mirrored left to right, or not at all."""
    check_viewpoint(viewpoint)
    return image if viewpoint == "upright" else image.transpose(_TRANSPOSE[viewpoint])


def check_viewpoint(viewpoint: str) -> None:
    """Refuse a viewpoint that does not exist."""
    if viewpoint not in VIEWPOINTS:
        raise ConfigError(
            code="WRONG_VALUE",
            message=f"[data] viewpoint is {viewpoint!r}.",
            advice=f"Expected one of: {', '.join(VIEWPOINTS)}.",
        )
