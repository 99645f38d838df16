"""Sites from a folder of domains, one site for each: ``<domain>/<class>/*``, as Office-Home and DomainNet come."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dpfpl_client.data import DataSettings, SiteData, list_classes, partition_sites, read_pool
from dpfpl_common.errors import DataError

__all__ = ["domain_classes", "domain_names", "domain_sites"]


def domain_names(root: Path) -> list[str]:
    """The domains: folders in ``root``, in alphabetical order.

    Raises:
        DataError: there are fewer than two.
    """
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise DataError(
            code="NO_DOMAINS",
            message=f"{root} holds {len(names)} folders; domains are at least two.",
            advice="Give the folder that holds one folder for each domain, each with one folder for each class.",
        )
    return names


def domain_classes(settings: DataSettings) -> tuple[str, ...]:
    """Classes that any domain has, sorted; those with images in one domain alone included."""
    found: set[str] = set()
    for part in _parts(settings):
        found |= set(list_classes(part))
    return tuple(sorted(found))


def domain_sites(settings: DataSettings, class_names: Sequence[str]) -> list[SiteData]:
    """One site for each domain. Its neighbour images are the test images of all other domains."""
    alone = [
        partition_sites(read_pool(part, class_names).records, class_names, "none", 1, 0) for part in _parts(settings)
    ]
    sites = [site for (site,) in alone]
    return [
        dataclasses.replace(
            site,
            neighbour_test=tuple(
                record for other in sites if other is not site for record in (*other.test, *other.neighbour_test)
            ),
        )
        for site in sites
    ]


def _parts(settings: DataSettings) -> list[DataSettings]:
    root = Path(settings.path)
    return [dataclasses.replace(settings, path=str(root / name)) for name in domain_names(root)]
