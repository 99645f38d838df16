"""The ``[data]`` table of ``site.toml``: where a site's images are, and which part of them is the site's."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from dpfpl_client.data.decode import Frames, PixelRules
from dpfpl_client.data.records import Viewpoint
from dpfpl_common.config import ImpossibleError, settings

__all__ = ["BUILT_IN", "Alpha", "DataSettings", "Partition", "Source"]

Source = Literal["folder", "csv", "huggingface", "digits", "shapes", "questions"]
Partition = Literal["none", "pathological", "dirichlet", "domain", "iid"]
Alpha = Annotated[float, Field(ge=1e-3, le=1e6)]
BUILT_IN = ("digits", "shapes")
"""Public data that come with the package."""


@settings
class DataSettings:
    """Where the images are, how they are split, and which site's part this is.

    Attributes:
        source: what kind of thing ``path`` names.
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
        bits: bits of a value in greyscale files of 16 bits that do not say it themselves; what the device
            writes, not what the pictures happen to hold.
        frames: of a file with several pictures the ``first`` is taken, or it is left out (``refuse``).
        public: whether everybody may know the data: exact accuracies may leave a site on public data, and only public
            data may be dealt out to several simulated sites. The built-in sets are public.
    """

    source: Source
    path: str = ""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    split_seed: int = 0
    partition: Partition = "none"
    num_sites: Annotated[int, Field(ge=1)] = 1
    site_index: Annotated[int, Field(ge=0)] = 0
    alpha: Alpha = 0.3
    partition_seed: int = 0
    viewpoint: Viewpoint = "upright"
    class_map: dict[str, str] = field(default_factory=dict)
    bits: Annotated[int, Field(ge=9, le=16)] = 16
    frames: Frames = "first"
    public: bool = False

    @property
    def is_public(self) -> bool:
        """Whether the data are declared public, or built in."""
        return self.public or self.source in BUILT_IN

    def __post_init__(self) -> None:
        if self.source not in BUILT_IN and not self.path.strip():
            raise ImpossibleError("path", self.path, f"where to find the {self.source} source")
        if self.site_index >= self.num_sites:
            raise ImpossibleError("site_index", self.site_index, f"a number from 0 to {self.num_sites - 1}")
        if self.partition == "none" and self.num_sites != 1:
            raise ImpossibleError("num_sites", self.num_sites, "1: without a partition every site gets all images")
        if self.partition == "domain" and self.viewpoint != "upright":
            raise ImpossibleError("viewpoint", self.viewpoint, "upright: this partition chooses it")
        if self.source == "questions" and self.partition != "none":
            raise ImpossibleError("partition", self.partition, "none: a file of questions is one site's own")
        if self.source == "questions" and self.class_map:
            raise ImpossibleError("class_map", dict(self.class_map), "nothing: questions have no classes")

    @property
    def pixel_rules(self) -> PixelRules:
        """How pixels become RGB where a file leaves it open."""
        return PixelRules(self.bits, self.frames)
