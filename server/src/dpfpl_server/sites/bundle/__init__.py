"""The Flower app bundle that a run is submitted with: one ``pyproject.toml`` that names the installed apps.

``deploy/bundle`` in the repository is the same file, for ``flwr run`` by hand.
"""

from importlib import resources
from pathlib import Path

__all__ = ["bundle_files", "materialise_bundle"]


def bundle_files() -> dict[str, bytes]:
    """Return the bundle's files by their path inside it."""
    return {"pyproject.toml": resources.files(__name__).joinpath("pyproject.toml").read_bytes()}


def materialise_bundle(folder: Path) -> Path:
    """Write the bundle into a folder named ``bundle`` there and return it, ready for ``flwr run``."""
    target = folder / "bundle"  # Flower takes a folder name without underscores only
    target.mkdir(parents=True, exist_ok=True)
    for name, content in bundle_files().items():
        (target / name).write_bytes(content)
    return target
