"""What the name of a folder says: that machines made it, or that it is one part of a split."""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence

from dpfpl_common.errors import DataError

__all__ = ["find_parts", "is_derived", "part_of_row", "printable", "role_of"]

_MACHINES = frozenset(
    {
        "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", ".@__thumb", "#recycle", "#snapshot",
        "~snapshot", "lost+found", "found.000", "$recycle.bin", "recycler", "recycled", "system volume information",
        "__macosx", "network trash folder", "temporary items", "_vti_cnf", "thumbnails", "_thumbnails", "_thumbs",
        ".thumbnails",
    }
)  # fmt: skip
"""Folders of network drives, operating systems and picture viewers, with copies or deleted files in them."""

_INSIDE_A_CLASS = frozenset({"thumbs", "thumb", "thumbnail", "previews", "preview", "_cache"})
_BUNDLES = (".lrdata", ".photoslibrary", ".aplibrary")

_ROLES = {
    "train": frozenset(
        {
            "train", "training", "trn", "trainval", "traindev", "trainings", "entrainement", "apprentissage",
            "entrenamiento", "treino", "treinamento", "addestramento", "allenamento", "обучение", "訓練", "学習",
            "トレーニング", "训练", "훈련", "학습",
        }
    ),
    "test": frozenset(
        {
            "test", "tests", "testing", "tst", "holdout", "prueba", "pruebas", "teste", "testes", "prova", "тест",
            "テスト", "测试", "測試", "테스트",
        }
    ),
    "val": frozenset(
        {
            "val", "valid", "validation", "validate", "dev", "eval", "evaluation", "validierung", "validierungs",
            "validacion", "validacao", "validazione", "validatie", "валидация", "検証", "評価", "验证", "驗證", "검증",
        }
    ),
}  # fmt: skip
"""In English, German, French, Spanish, Portuguese, Italian, Dutch, Russian, Japanese, Chinese and Korean."""

_FILLERS = frozenset(
    {
        "set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "part", "split", "folder", "daten",
        "bilder", "用", "データ", "集", "数据", "용",
    }
)  # fmt: skip
_ROLE_WORDS = "|".join(sorted({word for words in _ROLES.values() for word in words}, key=len, reverse=True))
_GLUED = re.compile(rf"({_ROLE_WORDS})(?:{'|'.join(sorted(_FILLERS))})+")
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0308\u0327")
_NAMED = 5


def is_derived(name: str, *, inside_a_class: bool = False) -> bool:
    """Whether a folder holds what machines made of pictures: thumbnails, deleted files, snapshots.

    Args:
        name: of the folder alone.
        inside_a_class: names that might be a class's (``thumbs``) count there only.
    """
    plain = name.casefold()
    return plain in _MACHINES or plain.endswith(_BUNDLES) or (inside_a_class and plain in _INSIDE_A_CLASS)


def printable(name: str) -> str:
    """The name with bytes that are no UTF-8 written as ``\\xe4``; other names as they are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def role_of(name: str) -> str:
    """``train``, ``test`` or ``val`` where the name says nothing else, in any spelling; else empty.

    ``Train``, ``training_set``, ``TestImages`` and ``3-test`` do, ``train station`` does not.
    """
    words = [word for word in _words(name) if word not in _FILLERS and not word.isdigit()]
    found = {role for word in words for role in [_role_of_word(word)]}
    return found.pop() if len(found) == 1 else ""


def part_of_row(split: object) -> str | None:
    """``train`` or ``test``, as a line of a table says it in any spelling; None where it says neither.

    Validation is held back like test, whatever other lines say: no line moves another one.
    """
    role = role_of(split) if isinstance(split, str) else ""
    return "test" if role == "val" else role or None


def find_parts(folders: Mapping[str, Sequence[str]], holds_images: Collection[str]) -> dict[str, str]:
    """Which top folders are the parts of a split: name -> ``train`` or ``test``; empty if they are classes.

    Without a test part, validation is the test part; beside one, it is not read.

    Args:
        folders: the top folders, and the names of the folders in each.
        holds_images: those of the top folders that hold an image themselves.

    Raises:
        DataError: SPLIT_UNCLEAR, they may be classes or parts; the advice asks which is meant.
    """
    roles = {name: role_of(name) for name, inner in folders.items() if inner and role_of(name)}
    others = sorted(name for name in folders if name not in roles and not role_of(name))
    if len(set(roles.values())) == 1 and others:
        roles = {name: role for name, role in roles.items() if name not in holds_images}  # the rest are classes
    if not roles:
        return _worded_parts(folders, holds_images)
    named = {role: [name for name, found in roles.items() if found == role] for role in _ROLES}
    if named["train"] and not named["test"]:
        named["test"], named["val"] = named["val"], []
    _ask(roles, named, others)
    for name in roles:
        if len(folders[name]) == 1 and role_of(folders[name][0]) == roles[name]:
            raise _unclear(
                f"The part {name!r} holds one folder, {folders[name][0]!r}, which may be the part once more.",
                f"Which is meant? If the classes lie in it, move them up into {name!r}.",
            )
    return {names[0]: role for role, names in named.items() if names and role != "val"}


def _ask(roles: Mapping[str, str], named: Mapping[str, Sequence[str]], others: Sequence[str]) -> None:
    """Raise the question which is meant, where there is one."""
    for role, names in named.items():
        if len(names) > 1 and role != "val":
            raise _unclear(
                f"{_quoted(names)} each look like the {role} part of a split.",
                f"Which one is it? Keep one folder called {role}, and move the others out of the data folder.",
            )
    if not named["train"]:
        raise _unclear(
            f"{_quoted(sorted(roles))} may be a part of a split, and there is no folder train beside it.",
            f"Which is meant? {_a_class(roles)} If it is a part, call the part to train on train.",
        )
    if others and not named["test"]:
        raise _unclear(
            f"{_quoted(sorted(roles))} may be the training part of a split, with {_quoted(others)} beside it.",
            f"Which is meant? {_a_class(roles)} If it is the training part, move the others out of the data folder.",
        )


def _worded_parts(folders: Mapping[str, Sequence[str]], holds_images: Collection[str]) -> dict[str, str]:
    """Asks about parts whose names say more than their role (``seg_train``), or that lie one folder deeper."""
    for name, inner in folders.items():
        roles = {_worded_role(part) for part in inner} - {""}
        if "train" in roles and len(roles) > 1:
            raise _unclear(
                f"The folder {name!r} holds {_quoted(sorted(inner)[:_NAMED])}, which look like the parts of a split.",
                f"Is {name!r} the data folder? Then point [data] path at it."
                if len(folders) == 1
                else f"Are they? Then turn it round: train/{name}, test/{name}, and so on.",
            )
    found: dict[str, list[str]] = {"train": [], "test": [], "val": [], "": []}
    for name, inner in folders.items():
        found[_worded_role(name) if inner and name not in holds_images else ""].append(name)
    parts = found["train"] + (found["test"] or found["val"])
    if not found["train"] or parts == found["train"]:
        return {}
    shared = sorted(set.intersection(*(set(folders[name]) for name in parts)))
    if not shared and not all(any(_worded_role(inner) for inner in folders[name]) for name in parts):
        return {}
    inside = f", with the folders {_quoted(shared[:_NAMED])} in them" if shared else ""
    raise _unclear(
        f"{_quoted(parts)} may be the parts of a split{inside}.",
        "Are they? Then call them train and test, with the class folders directly in them. If they are classes, put "
        "their images directly into them.",
    )


def _a_class(roles: Mapping[str, str]) -> str:
    name = next(iter(roles))
    return f"If {name!r} is a class, put its images directly into it, not into folders in it."


def _unclear(message: str, question: str) -> DataError:
    return DataError(code="SPLIT_UNCLEAR", message=message, advice=question)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = "".join(letter for letter in unicodedata.normalize("NFD", spaced.casefold()) if letter not in _ACCENTS)
    words = re.split(r"[\W_]+|(?<=[a-z])(?=\d)", unicodedata.normalize("NFC", plain))
    return [word for word in words if word]


def _worded_role(name: str) -> str:
    """The role that one word of the name has, whatever the others are."""
    roles = {_role_of_word(word) for word in _words(name)} - {""}
    return roles.pop() if len(roles) == 1 else ""


def _role_of_word(word: str) -> str:
    glued = _GLUED.fullmatch(word)
    plain = glued[1] if glued else word
    return next((role for role, words in _ROLES.items() if plain in words), "")
