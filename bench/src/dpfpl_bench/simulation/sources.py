"""Where a simulation's images come from: the named sets, ``--data``, a folder of domains, and sites' own folders."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpfpl_bench.demo.drawn_questions import with_neighbours
from dpfpl_client.data import DataSettings, SiteData, list_classes, load_site_data
from dpfpl_client.data.records import spelled_alike
from dpfpl_client.data.settings import BUILT_IN, Source
from dpfpl_client.site.settings import load_site
from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError, DataError, DpfplError
from dpfpl_common.experiment import SITE_NAME

__all__ = [
    "DATA_ROOT",
    "FIELD",
    "FLOWERS",
    "FieldData",
    "check_archive",
    "check_spelling",
    "data_settings",
    "domain_parts",
    "locate",
    "named_classes",
    "own_classes",
    "own_parts",
    "own_sites",
    "several_times",
]


# Names of the 102 classes of Oxford Flowers, in the order of the labels 1 to 102 that its files give.


# fmt: off
FLOWERS: tuple[str, ...] = (
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold", "tiger lily",
    "moon orchid", "bird of paradise", "monkshood", "globe thistle", "snapdragon", "colt's foot", "king protea",
    "spear thistle", "yellow iris", "globe-flower", "purple coneflower", "peruvian lily", "balloon flower",
    "giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger", "grape hyacinth",
    "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke", "sweet william", "carnation",
    "garden phlox", "love in the mist", "mexican aster", "alpine sea holly", "ruby-lipped cattleya", "cape flower",
    "great masterwort", "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia",
    "bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia",
    "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura", "geranium", "orange dahlia",
    "pink-yellow dahlia", "cautleya spicata", "japanese anemone", "black-eyed susan", "silverbush",
    "californian poppy", "osteospermum", "spring crocus", "bearded iris", "windflower", "tree poppy", "gazania",
    "azalea", "water lily", "rose", "thorn apple", "morning glory", "passion flower", "lotus", "toad lily",
    "anthurium", "frangipani", "clematis", "hibiscus", "columbine", "desert-rose", "tree mallow", "magnolia",
    "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss", "foxglove", "bougainvillea",
    "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower", "trumpet creeper", "blackberry lily",
)
# fmt: on


# The image sets of the published comparisons by name: where each is had, how its classes are called, its template.
#
# Class names and templates are those of CoOp (Zhou et al. 2022), which the federated prompt learning papers took over.
# As
# there, a learned prompt is ``[context] class name.``: of a template only what stands before the class name can be the
# initial text; the rest (``, a type of pet``) belongs to a hand-written prompt and is kept here for reference.


DATA_ROOT = "DPFPL_DATA_SETS"
"""Environment variable: a folder that holds one image folder for each named set, called by its name."""


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
    md5 = functools.partial(hashlib.md5, usedforsecurity=False)  # what the authors publish
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, md5).hexdigest()
    except OSError as error:
        raise DataError(
            code="ARCHIVE_UNREADABLE",
            message=f"{archive} cannot be read ({error.strerror or error}).",
            advice=f"Download {data.archive} from {data.page} again.",
        ) from None
    if digest != data.md5:
        raise DataError(
            code="WRONG_CHECKSUM",
            message=f"{archive} is not {data.archive} of {data.title}: its MD5 is {digest}.",
            advice=f"Download it from {data.page} again.",
        )


# What ``--data`` of the command line means.


def data_settings(data: str, seed: int, *, offline: bool = True) -> DataSettings:
    """A built-in set, a named set of the field, an image folder, a .csv file or a hub id, told apart by what is there.

    Args:
        data: the flag's value.
        seed: of the split into training and test images, where the source has none.
        offline: a named set must be on this machine; see ``dpfpl_bench.simulation.sources.locate``.

    Raises:
        ConfigError: it is none of these.
    """
    if data in FIELD:
        return _field_settings(FIELD[data], seed, offline=offline)
    path = Path(data).expanduser()
    if data in BUILT_IN:
        return build(DataSettings, {"source": data, "split_seed": seed}, "")
    if path.is_dir():
        return DataSettings(source="folder", path=str(path), split_seed=seed)
    if path.suffix.lower() == ".csv":
        return DataSettings(source="csv", path=str(path), split_seed=seed)
    if data.startswith(("/", ".", "~")) or data.count("/") != 1:
        raise ConfigError(
            code="NO_DATA",
            message=f"There is no folder and no .csv file {data!r}.",
            advice=f"Give an image folder, a .csv file, digits, shapes, {', '.join(FIELD)}, or a hub id such as "
            "owner/name.",
        )
    return DataSettings(source="huggingface", path=data, split_seed=seed)


def named_classes(data: str, settings: DataSettings) -> tuple[str, ...]:
    """The classes of ``--data``; of a named set those that the comparisons use."""
    found = list_classes(settings)
    if data not in FIELD:
        return found
    used = set(settings.class_map.values())
    return tuple(name for name in found if name in used)


def _field_settings(field: FieldData, seed: int, *, offline: bool) -> DataSettings:
    where = locate(field, offline=offline)
    source: Source = "folder" if isinstance(where, Path) else "huggingface"
    raw = DataSettings(source=source, path=str(where), split_seed=seed)
    names = field.class_map(list_classes(raw))
    if len(set(names.values())) != field.classes:
        raise DataError(
            code="WRONG_CLASSES",
            message=f"{where} has {len(set(names.values()))} classes; {field.title} has {field.classes}.",
            advice=f"Unpack the whole of {field.page} there: one folder for each class.",
        )
    return dataclasses.replace(raw, class_map=names)


def domain_parts(settings: DataSettings) -> dict[str, DataSettings]:
    """Where each domain's images are, by its name: folders in the settings' one, in alphabetical order.

    Raises:
        DataError: there are fewer than two.
    """
    root = Path(settings.path)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise DataError(
            code="NO_DOMAINS",
            message=f"{root} holds {len(names)} folders; domains are at least two.",
            advice="Give the folder that holds one folder for each domain, each with one folder for each class.",
        )
    return {name: dataclasses.replace(settings, path=str(root / name)) for name in names}


# Sites that have their own images: domains, and the folders of ``dpfpl-bench pilot``.


def own_parts(
    sites: Mapping[str, str], class_map: Mapping[str, str], seed: int, *, offline: bool = True
) -> dict[str, DataSettings]:
    """Where each site's own images are.

    Args:
        sites: by name what ``data_settings`` takes, a .jsonl file of questions, or a site.toml, whose [data] holds.
        class_map: from a class as the sites call it to its name in the experiment; ``SITE:class`` for one site alone.
        seed: of the splits; one for all, so that copies of an image fall on the same side everywhere.
        offline: as of ``data_settings``.

    Raises:
        ConfigError: fewer than two sites, a bad name, a line of the class map that fits no site.
        DataError: a site's images cannot be read; two classes differ in spelling alone.
    """
    if len(sites) < 2:
        raise ConfigError(
            code="TOO_FEW_SITES",
            message=f"A federation needs two sites, there is {len(sites)}.",
            advice="Give --site NAME=FOLDER for each.",
        )
    parts, labels = {}, {}
    for name, where in sites.items():
        if not SITE_NAME.fullmatch(name):
            raise ConfigError(
                code="IMPOSSIBLE_VALUE",
                message=f"A site's name is {name!r}.",
                advice="Use 1-63 of a-z, 0-9 and '-', starting with a letter or digit.",
            )
        with _said_of(name):
            parts[name] = _own(where, seed, offline=offline)
            labels[name] = list_classes(parts[name])
    for own, called in class_map.items():
        site, _, label = own.partition(":")
        chosen, label = ([site], label) if site in parts else (list(parts), own)
        if not (having := [name for name in chosen if label in labels[name]]):
            found = sorted({known for name in chosen for known in labels[name]})
            raise ConfigError(
                code="CLASS_MAP_UNUSED",
                message=f"The class map names {label!r}, but {' and '.join(chosen)} have no such class.",
                advice=f"The classes there: {', '.join(found)}.",
            )
        for name in having:
            parts[name] = dataclasses.replace(parts[name], class_map={**parts[name].class_map, label: called})
    return parts


def own_classes(parts: Mapping[str, DataSettings]) -> tuple[str, ...]:
    """Classes that any site has, sorted; those with images at one site alone included."""
    return tuple(sorted({name for part in parts.values() for name in list_classes(part)}))


def check_spelling(class_names: Sequence[str]) -> None:
    """Refuse classes that are probably one: sites seldom agree on capital letters and underscores by themselves."""
    if same := spelled_alike(class_names):
        raise DataError(
            code="CLASSES_ALIKE",
            message=f"The classes {' and '.join(map(repr, same))} differ in spelling alone.",
            advice=f"Join them with --class-map {shlex.quote(f'{same[0]}={same[-1]}')}, or rename one.",
        )


def own_sites(parts: Mapping[str, DataSettings], class_names: Sequence[str]) -> list[SiteData]:
    """Each site's own images. Its neighbour images are the test images of all other sites.

    Raises:
        DataError: a site's images cannot be used; the message names the site.
    """
    sites = []
    for name, part in parts.items():
        with _said_of(name):
            sites.append(load_site_data(part, class_names))
    return with_neighbours(sites)


def several_times(sites: Sequence[SiteData]) -> int:
    """How many images are at more than one site: each counts at every one, for its protection and for the scores."""
    seen = Counter(digest for site in sites for digest in {record.digest for record in (*site.train, *site.test)})
    return sum(count > 1 for count in seen.values())


def _own(where: str, seed: int, *, offline: bool) -> DataSettings:
    path = Path(where).expanduser()
    if path.suffix == ".toml":
        return load_site(path).data
    if path.suffix.lower() == ".jsonl":
        return DataSettings(source="questions", path=str(path), split_seed=seed)
    return data_settings(where, seed, offline=offline)


@contextlib.contextmanager
def _said_of(site: str) -> Iterator[None]:
    """Errors about a site's images begin with its name."""
    try:
        yield
    except DpfplError as error:
        raise type(error)(code=error.code, message=f"{site}: {error.message}", advice=error.advice) from None
