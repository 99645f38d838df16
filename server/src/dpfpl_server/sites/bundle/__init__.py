"""The Flower app bundle that a run is submitted with: one ``pyproject.toml`` that names the installed apps.

``deploy/bundle`` in the repository is another one, for Flower's simulation.
"""

from importlib import resources

__all__ = ["bundle_files"]


def bundle_files() -> dict[str, bytes]:
    """Return the bundle's files by their path inside it."""
    return {"pyproject.toml": resources.files(__name__).joinpath("pyproject.toml").read_bytes()}
