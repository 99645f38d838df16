"""What is wrong with a model folder, found before anything of it is loaded.

Each fault has a code, the name of the file and what to do. What is accepted here is what is loaded later: the weights
are whole safetensors files in the folder itself, so the fingerprint over the folder's files covers them.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from dpfpl_common.errors import ModelError

__all__ = ["identifying_files", "model_type", "refuse_broken", "stored_precision", "weight_files"]

WEIGHTS: Final = ("*.safetensors",)
DESCRIPTIONS: Final = (
    "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""What transformers reads beside weights: configurations, tokenizers, chat templates."""

TOKENIZERS: Final = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken", "tekken.json")
PREPROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")
POINTER: Final = b"version https://git-lfs.github.com/spec/"
LARGEST_HEADER: Final = 100_000_000
PRECISIONS: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
AGAIN: Final = "Download it again, or copy it again from a complete copy."


def identifying_files(folder: Path) -> list[Path]:
    """The files that the fingerprint is over: all that is loaded, and maybe more."""
    found = {path for pattern in (*WEIGHTS, *DESCRIPTIONS) for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def model_type(folder: Path) -> str:
    """The family that the model's own config.json names.

    Raises:
        ModelError: GIT_LFS_POINTER where config.json is one, NO_MODEL_CONFIG.
    """
    _refuse_pointers(folder, [path for path in identifying_files(folder) if path.name == "config.json"])
    return str(_read_config(folder)["model_type"])


def refuse_broken(folder: Path) -> None:
    """Refuse a folder that lacks something, or holds something damaged, or loads something from elsewhere.

    Raises:
        ModelError: GIT_LFS_POINTER, NO_MODEL_CONFIG, MODEL_FILE_DAMAGED, MODEL_FILE_CUT, WEIGHTS_ELSEWHERE,
            WEIGHTS_INCOMPLETE, WEIGHTS_QUANTISED, NO_SAFETENSORS, NO_TOKENIZER or NO_PREPROCESSOR.
    """
    _refuse_pointers(folder, identifying_files(folder))
    config = _read_config(folder)
    for path in identifying_files(folder):
        if path.suffix == ".json" and path.name != "config.json":
            _read_json(path)
        elif path.suffix in (".txt", ".jinja"):
            _read_text(path)
    if "quantization_config" in config:
        raise ModelError(
            code="WEIGHTS_QUANTISED",
            message=f"{folder}/config.json says that the weights are quantised; gradients through them are not exact.",
            advice="Take the model's weights in float32, float16 or bfloat16.",
        )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            code="WEIGHTS_ELSEWHERE",
            message=f"{folder} holds adapter_config.json: weights of an adapter would be added to the model's.",
            advice="Merge the adapter into the model and save that, or remove adapter_config.json.",
        )
    for name in weight_files(folder, config):
        _refuse_cut(folder / name)
    _refuse_without_tokenizer(folder)
    if not any((folder / name).is_file() for name in PREPROCESSORS):
        raise ModelError(
            code="NO_PREPROCESSOR",
            message=f"{folder} lacks preprocessor_config.json, by which pictures are brought to the model's size.",
            advice="Download it from where the model came from, and put it beside config.json.",
        )


def weight_files(folder: Path, config: dict[str, Any]) -> list[str]:
    """Names of the weight files that transformers would load, all of them safetensors in the folder itself.

    Raises:
        ModelError: NO_SAFETENSORS, WEIGHTS_ELSEWHERE or WEIGHTS_INCOMPLETE.
    """
    first = config.get("transformers_weights")
    if first is None:
        first = next(
            (name for name in ("model.safetensors", "model.safetensors.index.json") if (folder / name).is_file()), None
        )
    if first is None:
        raise ModelError(
            code="NO_SAFETENSORS",
            message=f"{folder} holds neither model.safetensors nor model.safetensors.index.json; other formats are "
            "never loaded.",
            advice="Convert the weights to safetensors and save them under one of these names.",
        )
    named = _plain_name(first, "config.json", (".safetensors", ".safetensors.index.json"))
    if not named.endswith(".index.json"):
        names = [named]
    else:
        index = _read_json(folder / named) if (folder / named).is_file() else {}
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise _damaged(folder / named, "names no weight files")
        names = sorted({_plain_name(shard, named, (".safetensors",)) for shard in shards.values()})
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            code="WEIGHTS_INCOMPLETE",
            message=f"{folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing[:3])}.",
            advice="Download what is missing.",
        )
    return names


def stored_precision(folder: Path) -> str:
    """In which the checkpoint holds most of its numbers, ``float16``; the folder passed ``refuse_broken``."""
    numbers: Counter[str] = Counter()
    for name in weight_files(folder, _read_config(folder)):
        for entry in _header(folder / name)[0].values():
            if entry["dtype"] in PRECISIONS:
                numbers[PRECISIONS[entry["dtype"]]] += math.prod(entry["shape"])
    return numbers.most_common(1)[0][0] if numbers else "float32"


def _plain_name(name: object, said_by: str, endings: tuple[str, ...]) -> str:
    if isinstance(name, str) and name.endswith(endings) and Path(name).name == name and "\\" not in name:
        return name
    raise ModelError(
        code="WEIGHTS_ELSEWHERE",
        message=f"{said_by} names the weights {name!r}; only safetensors files in the model's own folder are loaded, "
        "as the fingerprint covers no others.",
        advice="Put the weights beside config.json as safetensors, and name them so.",
    )


def _refuse_pointers(folder: Path, files: list[Path]) -> None:
    pointers = []
    for path in files:
        with _opened(path) as file:
            if file.read(len(POINTER)) == POINTER:
                pointers.append(path.name)
    if pointers:
        more = f" and {len(pointers) - 3} more" if len(pointers) > 3 else ""
        raise ModelError(
            code="GIT_LFS_POINTER",
            message=f"In {folder}, {', '.join(pointers[:3])}{more} only point to Git LFS; what they stand for was not "
            "downloaded.",
            advice="Run `git lfs install` and `git lfs pull` in that folder, or download the files another way.",
        )


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelError(
            code="MODEL_FILE_UNREADABLE",
            message=f"{path} cannot be read ({error.strerror}).",
            advice="Let the user that runs this read the model's files.",
        ) from None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            code="NO_MODEL_CONFIG",
            message=f"{folder} holds no readable config.json ({type(error).__name__}).",
            advice="Give a folder in Hugging Face format: config.json, *.safetensors, tokenizer, preprocessor.",
        ) from None
    return dict(config)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is no JSON ({str(error)[:100]})") from None


def _read_text(path: Path) -> str:
    with _opened(path) as file:
        content: bytes = file.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, f"is no UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise _damaged(path, "holds zero bytes")
    if not text.strip():
        raise _damaged(path, "is empty")
    return text


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(code="MODEL_FILE_DAMAGED", message=f"{path} {what}.", advice=AGAIN)


def _refuse_cut(path: Path) -> None:
    """Refuse a safetensors file that is shorter, or longer, than its own header says."""
    size = path.stat().st_size
    table, begin = _header(path)
    expected = begin + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    if size != expected:
        raise _cut(path, size, expected)


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """A safetensors file's tensors by name, and where their numbers begin.

    Raises:
        ModelError: MODEL_FILE_DAMAGED or MODEL_FILE_CUT.
    """
    size = path.stat().st_size
    with _opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > LARGEST_HEADER or length < 2:
            what = "is empty" if size == 0 else "does not begin as safetensors files do"
            raise _damaged(path, f"{what} ({size:,} bytes)")
        header = file.read(length)
    if len(header) < length:
        raise _cut(path, size, 8 + length, "at least ")
    try:
        table = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        for entry in table.values():
            _ = (str(entry["dtype"]), math.prod(entry["shape"]), int(entry["data_offsets"][1]))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise _damaged(path, "has a damaged header") from None
    return table, 8 + length


def _cut(path: Path, size: int, expected: int, least: str = "") -> ModelError:
    return ModelError(
        code="MODEL_FILE_CUT",
        message=f"{path} has {size:,} bytes where its header says {least}{expected:,}: it was not downloaded whole.",
        advice=AGAIN,
    )


def _refuse_without_tokenizer(folder: Path) -> None:
    def there(*names: str) -> Iterator[Path]:
        return (path for name in names for path in folder.glob(name) if path.is_file())

    lacks = "" if any(there(*TOKENIZERS)) else "a tokenizer: tokenizer.json, or the files that its kind has"
    if not any(there("tokenizer.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")):
        pair = [(folder / name).is_file() for name in ("vocab.json", "merges.txt")]
        lacks = lacks or ("" if all(pair) else "merges.txt, without which vocab.json is no tokenizer")
    if lacks:
        raise ModelError(
            code="NO_TOKENIZER",
            message=f"{folder} lacks {lacks}.",
            advice="Download the model's tokenizer files and put them beside config.json.",
        )
