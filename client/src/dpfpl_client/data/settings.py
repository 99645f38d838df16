"""The ``[data]`` table of ``site.toml``: where a site's images are, and which part of them is the site's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dpfpl_client.data.records import check_viewpoint
from dpfpl_common.errors import ConfigError

__all__ = ["PARTITIONS", "SOURCES", "DataSettings", "check_partition", "expect"]

SOURCES = ("folder", "csv", "huggingface", "digits", "shapes", "questions")
PARTITIONS = ("none", "pathological", "dirichlet", "domain", "iid")
_BUILT_IN = ("digits", "shapes")
_ALPHAS = (1e-3, 1e6)


@dataclass(frozen=True)
class DataSettings:
    """Where the images are, how they are split, and which site's part this is.

    Attributes:
        source: one of ``SOURCES``.
        path: the folder, the CSV file, the file of questions (JSON lines), or the hub id (``owner/name``, with
            ``:configuration`` where there are several); empty for the built-ins.
        test_fraction: the expected part of the images that is kept for testing, where the source has no split.
        split_seed: the seed of that split; sites that may hold copies of one image should share it.
        partition: ``none`` for a site that owns its data; the others simulate several sites over one data set.
        num_sites: number of simulated sites.
        site_index: which of them this is, from 0.
        alpha: concentration of the Dirichlet partition; smaller is more uneven.
        partition_seed: the seed of the partition, the same at every simulated site.
        viewpoint: how this site sees every image of its own.
        class_map: the site's own folder names or labels -> the experiment's class names.
        public: whether everybody may know the data: exact accuracies may leave a site on public data, and only public
            data may be dealt out to several simulated sites. The built-in sets are public.
    """

    source: str
    path: str = ""
    test_fraction: float = 0.25
    split_seed: int = 0
    partition: str = "none"
    num_sites: int = 1
    site_index: int = 0
    alpha: float = 0.3
    partition_seed: int = 0
    viewpoint: str = "upright"
    class_map: Mapping[str, str] = field(default_factory=dict)
    public: bool = False

    @property
    def is_public(self) -> bool:
        """Whether the data are declared public, or built in."""
        return self.public or self.source in _BUILT_IN

    def __post_init__(self) -> None:
        expect("source", self.source, self.source in SOURCES, f"one of: {', '.join(SOURCES)}")
        if self.source not in _BUILT_IN:
            expect("path", self.path, bool(self.path.strip()), f"where to find the {self.source} source")
        expect("test_fraction", self.test_fraction, 0 <= self.test_fraction < 1, "at least 0, below 1")
        check_partition(self.partition, self.num_sites, self.alpha)
        expect("site_index", self.site_index, 0 <= self.site_index < self.num_sites, f"from 0 to {self.num_sites - 1}")
        check_viewpoint(self.viewpoint)
        if self.source == "questions":
            expect("partition", self.partition, self.partition == "none", "none: a file of questions is one site's own")
            expect("class_map", dict(self.class_map), not self.class_map, "nothing: questions have no classes")
        if self.partition == "domain":
            expect("viewpoint", self.viewpoint, self.viewpoint == "upright", "upright: this partition chooses it")


def check_partition(partition: str, num_sites: int, alpha: float) -> None:
    """Refuse a partition that does not exist or cannot be made."""
    expect("partition", partition, partition in PARTITIONS, f"one of: {', '.join(PARTITIONS)}")
    expect("num_sites", num_sites, num_sites >= 1, "at least 1")
    expect(
        "alpha", alpha, math.isfinite(alpha) and _ALPHAS[0] <= alpha <= _ALPHAS[1], f"{_ALPHAS[0]} to {_ALPHAS[1]:.0f}"
    )


def expect(key: str, value: object, holds: bool, expected: str) -> None:
    """Refuse the value of a key of ``[data]`` unless what is expected of it holds."""
    if not holds:
        raise ConfigError(code="WRONG_VALUE", message=f"[data] {key} is {value!r}.", advice=f"Expected {expected}.")
