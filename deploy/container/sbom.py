"""Write the software bill of materials of an environment (CycloneDX 1.5): ``python sbom.py NAME SITE_PACKAGES > FILE``.

Read from the installed packages' own metadata, so it says what an image holds and not what was asked for.
"""

import json
import re
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

__all__ = ["bill_of_materials"]


def bill_of_materials(name: str, site_packages: Path) -> dict[str, Any]:
    """The bill of everything installed in ``site_packages``, one component a package, sorted by name.

    Raises:
        ValueError: nothing is installed there.
    """
    found = {_purl(package): package for package in distributions(path=[str(site_packages)])}
    if not found:
        raise ValueError(f"no package is installed in {site_packages}")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "container", "bom-ref": name, "name": name},
        },
        "components": [_component(purl, found[purl]) for purl in sorted(found)],
        "dependencies": [{"ref": name, "dependsOn": sorted(found)}],
    }


def _purl(package: Distribution) -> str:
    """The package's URL; the name normalised as the index does."""
    return f"pkg:pypi/{re.sub(r'[-_.]+', '-', package.metadata['Name']).lower()}@{package.version}"


def _component(purl: str, package: Distribution) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": package.metadata["Name"],
        "version": package.version,
        "purl": purl,
    }
    licence = package.metadata.get("License-Expression") or package.metadata.get("License") or ""
    if licence and len(licence) < 100:  # some put the whole text there
        component["licenses"] = [{"license": {"name": licence}}]
    return component


if __name__ == "__main__":
    json.dump(bill_of_materials(sys.argv[1], Path(sys.argv[2])), sys.stdout, indent=1)
