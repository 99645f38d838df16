"""The image sets of the published comparisons by name: where each is had, how its classes are called, its template.

Class names and templates are those of CoOp (Zhou et al. 2022), which the federated prompt learning papers took over. As
there, a learned prompt is ``[context] class name.``: of a template only what stands before the class name can be the
initial text; the rest (``, a type of pet``) belongs to a hand-written prompt and is kept here for reference.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpfpl_bench.flower_names import FLOWERS
from dpfpl_common.errors import ConfigError, DataError

__all__ = ["DATA_ROOT", "FIELD", "FieldData", "check_archive", "locate"]

DATA_ROOT = "DPFPL_DATA_SETS"
"""Environment variable: a folder that holds one image folder for each named set, called by its name."""

BLOCK = 1 << 20


@dataclass(frozen=True)
class FieldData:
    """One named set.

    Attributes:
        name: what ``--data`` says.
        title: as papers write it.
        hub: Hugging Face id; with a configuration where there are several.
        classes: how many.
        template: of a hand-written prompt.
        page: where its authors publish it.
        archive, md5: their archive of images, and its checksum as they or torchvision publish it; empty if unknown.
        renamed: labels of the source that are called otherwise; for all others ``_`` becomes a space.
        numbered: class names by number, where the source has numbers alone.
        left_out: labels that the comparisons leave out.
    """

    name: str
    title: str
    hub: str
    classes: int
    template: str
    page: str
    archive: str = ""
    md5: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    numbered: Sequence[str] = ()
    left_out: tuple[str, ...] = ()

    @property
    def init_text(self) -> str:
        """What of the template stands before the class name; where nothing does, the general text."""
        return self.template.partition("{}")[0].strip() or "a photo of a"

    def class_map(self, labels: Sequence[str]) -> dict[str, str]:
        """From the source's labels to class names; labels that the comparisons leave out are not in it."""
        if self.numbered and set(labels) <= set(self._by_number(labels)):
            return {label: name for label, name in self._by_number(labels).items() if label in labels}
        return {label: self._class_name(label) for label in labels if label not in self.left_out}

    def _by_number(self, labels: Sequence[str]) -> dict[str, str]:
        """The authors' labels begin at 1, the hub's at 0: told apart by whether there is a 0."""
        first = 0 if "0" in labels else 1
        return {str(number): name for number, name in enumerate(self.numbered, start=first)}

    def _class_name(self, label: str) -> str:
        if label in self.renamed:
            return self.renamed[label]
        return " ".join(label.replace("_", " ").split())


_SETS = (
    FieldData(
        "caltech101",
        "Caltech101",
        "flwrlabs/caltech101",
        100,
        "a photo of a {}.",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "101_ObjectCategories.tar.gz",
        "b224c7392d521a49829488ab0f1120d9",
        renamed={
            "airplanes": "airplane",
            "Faces": "face",
            "faces": "face",
            "Leopards": "leopard",
            "leopards": "leopard",
            "Motorbikes": "motorbike",
            "motorbikes": "motorbike",
        },
        left_out=("BACKGROUND_Google", "background_google", "Faces_easy", "faces_easy"),
    ),
    FieldData(
        "oxford_pets",
        "OxfordPets",
        "timm/oxford-iiit-pet",
        37,
        "a photo of a {}, a type of pet.",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "images.tar.gz",
        "5c4f3ee8e5d25df40f4fd59a7f44e54c",
    ),
    FieldData(
        "oxford_flowers",
        "OxfordFlowers",
        "dpdl-benchmark/oxford_flowers102",
        102,
        "a photo of a {}, a type of flower.",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "102flowers.tgz",
        "52808999861908f626f3c1f4e79d11fa",
        numbered=FLOWERS,
    ),
    FieldData(
        "food101",
        "Food101",
        "ethz/food101",
        101,
        "a photo of {}, a type of food.",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "food-101.tar.gz",
        "85eeb15f3717b99a5da872d97d918f87",
    ),
    FieldData(
        "cifar10",
        "CIFAR-10",
        "uoft-cs/cifar10",
        10,
        "a photo of a {}.",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
    ),
    FieldData(
        "cifar100",
        "CIFAR-100",
        "uoft-cs/cifar100",
        100,
        "a photo of a {}.",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
    FieldData(
        "dtd",
        "DTD",
        "tanganke/dtd",
        47,
        "{} texture.",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "dtd-r1.0.1.tar.gz",
        "fff73e5086ae6bdbea199a49dfb8a4c1",
    ),
)

FIELD: Mapping[str, FieldData] = {each.name: each for each in _SETS}
"""The named sets by name."""


def locate(data: FieldData, *, offline: bool) -> Path | str:
    """The set's folder under ``$DPFPL_DATA_SETS`` if it is there, else its hub id if the network may be used.

    Raises:
        DataError: neither.
    """
    root = os.environ.get(DATA_ROOT)
    folder = Path(root).expanduser() / data.name if root else None
    if folder is not None and folder.is_dir():
        return folder
    if not offline:
        return data.hub
    where = f"{folder} does not exist" if folder is not None else f"the variable {DATA_ROOT} is not set"
    raise DataError(
        code="FIELD_DATA_MISSING",
        message=f"The images of {data.title} are not at hand: {where}, and downloading was not allowed.",
        advice=f"Give --online to take {data.hub} from the Hugging Face hub, or put the images of {data.page} as "
        f"train/<class>/* and test/<class>/* (or <class>/*) into {data.name} in a folder, and name that folder in "
        f"{DATA_ROOT}.",
    )


def check_archive(data: FieldData, archive: Path) -> None:
    """See that a downloaded archive is the one that its authors publish.

    Raises:
        DataError: it cannot be read, or its checksum is another.
    """
    if not data.md5:
        raise ConfigError(
            code="NO_CHECKSUM",
            message=f"No checksum of {data.title} is known.",
            advice="Compare the digest of the images instead: dpfpl-bench run writes it as data_digest.",
        )
    digest = hashlib.md5(usedforsecurity=False)  # what the authors publish
    try:
        with archive.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(
            code="ARCHIVE_UNREADABLE",
            message=f"{archive} cannot be read ({error.strerror or error}).",
            advice=f"Download {data.archive} from {data.page} again.",
        ) from None
    if digest.hexdigest() != data.md5:
        raise DataError(
            code="WRONG_CHECKSUM",
            message=f"{archive} is not {data.archive} of {data.title}: its MD5 is {digest.hexdigest()}.",
            advice=f"Download it from {data.page} again.",
        )
