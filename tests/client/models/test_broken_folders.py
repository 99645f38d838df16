"""What is wrong with a model folder is said by a code, with the file's name and a cure; nothing is loaded by half."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpfpl_client.models.files import model_fingerprint
from dpfpl_client.models.folder import identifying_files
from dpfpl_client.models.generative.template import FAMILIES, REFUSED
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import DpfplError, ModelError
from dpfpl_models import embedded_model_path
from tokenizer_kinds import our_scores, plain_scores, write_model

torch.set_num_threads(1)

GEMMA = "BPE, blank before (Gemma)"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 605157884\n"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(embedded_model_path(), tmp_path / "model")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return write_model("siglip", GEMMA, tmp_path_factory.mktemp("siglip"), seed=1, frame="end")


@pytest.fixture
def siglip_folder(siglip, tmp_path):
    return shutil.copytree(siglip, tmp_path / "siglip")


def refused(folder, code, *words):
    with pytest.raises(ModelError) as caught:
        load_backbone(str(folder))
    assert caught.value.code == code, caught.value
    assert caught.value.advice
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def changed_json(path, **changes):
    table = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (table | changes).items() if value is not None}))


def changed_weights(path, **changes):
    weights = load_file(path)
    for name, change in changes.items():
        (full,) = [each for each in weights if each.endswith(name)]
        weights[full] = change(weights[full])
    save_file(weights, path, metadata={"format": "pt"})


# Kind: weights that are no numbers, or numbers that stand for others.


@pytest.mark.parametrize("value", [float("nan"), float("-inf")], ids=str)
@pytest.mark.parametrize(
    "name",
    ["text_projection.weight", "logit_scale", "text_model.final_layer_norm.bias", "vision_model.post_layernorm.bias"],
)
def test_DR5_one_value_that_is_not_finite_is_found_in_any_tensor(folder, name, value):
    def put(tensor):
        tensor.view(-1)[-1] = value
        return tensor

    changed_weights(folder / "model.safetensors", **{name: put})
    refused(folder, "WEIGHTS_NOT_FINITE", name, "1 of ")


def test_DR5_weights_that_overflow_in_what_is_computed_in_are_found(folder):
    changed_weights(folder / "model.safetensors", **{"text_projection.weight": lambda w: w.double() * 1e300})
    refused(folder, "WEIGHTS_NOT_FINITE", "text_projection.weight", "float32")


def test_a_temperature_that_overflows_is_found(folder):
    changed_weights(folder / "model.safetensors", logit_scale=lambda scale: torch.full_like(scale, 1000.0))
    refused(folder, "WEIGHTS_NOT_FINITE", "logit_scale")


def test_weights_that_make_features_of_nothing_are_found(folder):
    changed_weights(folder / "model.safetensors", **{"text_projection.weight": torch.zeros_like})
    refused(folder, "TEXT_TOWER_UNUSABLE")


def test_quantised_weights_are_called_so_and_no_package_is_asked_for(folder):
    changed_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "pip install" not in refused(folder, "WEIGHTS_QUANTISED")


# Kind: weights that lie outside the folder, or outside the fingerprint.


def sharded(folder, name, where):
    """The weights as one shard that the index calls ``name`` and that lies at ``where``."""
    where.parent.mkdir(parents=True, exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(where)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["sub/w.safetensors", "../w.safetensors", "./w.safetensors", "/w.safetensors", "w.bin"]
)
def test_DR5_an_index_that_names_weights_elsewhere_is_refused(folder, tmp_path, name):
    """Also where they are pickled, which is never unpickled."""
    name = f"{tmp_path}{name}" if name.startswith("/") else name
    sharded(folder, name, (folder / name).resolve())
    if name == "w.bin":
        (folder / "w.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused(folder, "WEIGHTS_ELSEWHERE", repr(name), "index.json")


@pytest.mark.parametrize("name", ["sub/w.safetensors", "w.bin", 7])
def test_DR5_weights_that_config_json_names_elsewhere_are_refused(folder, name):
    changed_json(folder / "config.json", transformers_weights=name)
    refused(folder, "WEIGHTS_ELSEWHERE", "config.json")


def test_an_adapter_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    refused(folder, "WEIGHTS_ELSEWHERE", "adapter_config.json")


def test_shards_in_the_folder_are_loaded_and_each_one_counts_in_the_fingerprint(folder):
    whole = load_backbone(str(folder))
    sharded(folder, "model-00001-of-00001.safetensors", folder / "model-00001-of-00001.safetensors")
    found = load_backbone(str(folder))
    assert torch.equal(found.token_embedding.weight, whole.token_embedding.weight)
    flip_a_bit(folder / "model-00001-of-00001.safetensors")
    assert model_fingerprint(folder) != found.fingerprint


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def test_one_byte_of_any_file_changes_the_fingerprint(folder):
    seen = {load_backbone("embedded").fingerprint, load_backbone(str(folder)).fingerprint}
    assert len(seen) == 1
    flip_a_bit(folder / "model.safetensors")
    seen.add(load_backbone(str(folder)).fingerprint)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    seen.add(load_backbone(str(folder)).fingerprint)
    assert len(seen) == 3


def test_the_files_of_the_fingerprint_are_enough_to_load_the_model(siglip, folder, tmp_path):
    """So nothing that is loaded is left out of it."""
    for number, source in enumerate((siglip, folder)):
        (source / "notes.md").write_text("not read")
        (source / "pytorch_model.bin").write_bytes(b"never read")
        target = tmp_path / f"copy{number}"
        for path in identifying_files(source):
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(source))
        assert not (target / "pytorch_model.bin").exists()
        assert load_backbone(str(target)).fingerprint == load_backbone(str(source)).fingerprint


# Kind: what people really have in such folders, or instead of one.


def test_a_model_that_is_not_there(tmp_path):
    for name in (tmp_path / "nowhere", "no-such-owner/no-such-model", "::"):
        refused(name, "MODEL_NOT_FOUND", str(name))


def test_a_folder_without_a_readable_config(folder):
    for content in (None, "", "[]", "{}", "\0"):
        (folder / "config.json").unlink(missing_ok=True)
        if content is not None:
            (folder / "config.json").write_text(content)
        refused(folder, "NO_MODEL_CONFIG")


def test_pickled_weights_are_never_loaded(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "NO_SAFETENSORS")


def test_a_family_that_cannot_be_used_is_refused_by_name_with_the_reason(folder):
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    assert set(REFUSED) <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert not set(REFUSED) & set(FAMILIES)
    for family, reason in REFUSED.items():
        changed_json(folder / "config.json", model_type=family)
        refused(folder, "UNKNOWN_FAMILY", repr(family), reason)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named_with_the_cure(folder, name):
    (folder / name).write_text(POINTER)
    refused(folder, "GIT_LFS_POINTER", name, "git lfs pull")


def test_half_a_download_is_named_with_its_size(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(folder, "MODEL_FILE_CUT", "model.safetensors", f"{len(content):,}", "Download it again")
    for other in (content + b"\0" * 10, content[:1000]):
        path.write_bytes(other)
        refused(folder, "MODEL_FILE_CUT", "model.safetensors")
    for other in (b"", b"\xff" * 100):
        path.write_bytes(other)
        refused(folder, "MODEL_FILE_DAMAGED", "model.safetensors")


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_is_named(folder, name):
    for content in ("", "{", "<html>404</html>", "\0\0\0\0"):
        (folder / name).write_text(content)
        refused(folder, "MODEL_FILE_DAMAGED", name, "Download it again")


def test_a_missing_shard_is_named(folder):
    sharded(folder, "model-00001-of-00001.safetensors", folder / "model-00001-of-00001.safetensors")
    (folder / "model-00001-of-00001.safetensors").unlink()
    refused(folder, "WEIGHTS_INCOMPLETE", "model-00001-of-00001.safetensors")


def test_no_preprocessor_is_said(folder):
    (folder / "preprocessor_config.json").unlink()
    refused(folder, "NO_PREPROCESSOR", "preprocessor_config.json")


def test_no_tokenizer_is_said(folder):
    for path in folder.glob("*token*"):
        path.unlink()
    refused(folder, "NO_TOKENIZER", "tokenizer.json")


@pytest.mark.parametrize(("left", "missing"), [("vocab.json", "merges.txt"), ("merges.txt", "tokenizer")])
def test_half_a_tokenizer_is_said(folder, left, missing):
    """CLIP's tokenizer would be made of letters alone."""
    (folder / "tokenizer.json").unlink()
    (folder / left).write_text('{"a": 0}' if left.endswith("json") else "#version: 0.2\n")
    refused(folder, "NO_TOKENIZER", missing)


def test_a_tokenizer_that_knows_no_word_is_refused(siglip_folder):
    (siglip_folder / "tokenizer.json").unlink()
    (siglip_folder / "vocab.txt").write_text("nothing\n")
    with pytest.raises(ModelError, match=r"TOKENIZER_UNUSABLE|TOKENIZER_DOES_NOT_LOAD"):
        load_backbone(str(siglip_folder))


def test_another_projection_dim_is_said_with_the_tensor_and_both_shapes(folder):
    size = json.loads((folder / "config.json").read_text())["projection_dim"]
    changed_json(folder / "config.json", projection_dim=size + 16)
    refused(folder, "WEIGHTS_DO_NOT_FIT", f"[{size}, ", f"[{size + 16}, ", "projection_dim")


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_layers_is_said(folder, change):
    """One less, and transformers would leave a layer of the checkpoint out without an error."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += change
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "WEIGHTS_INCOMPLETE" if change > 0 else "WEIGHTS_DO_NOT_FIT", "layers.")


@pytest.mark.parametrize("changes", [
    {"size": {"height": 48, "width": 48}, "crop_size": {"height": 48, "width": 48}},
    {"do_center_crop": False, "do_resize": False},
    {"image_std": [0.0, 0.5, 0.5]},
])  # fmt: skip
def test_a_preprocessor_that_is_not_the_towers_is_said(folder, changes):
    changed_json(folder / "preprocessor_config.json", **changes)
    refused(folder, "PREPROCESSOR_MISMATCH", "preprocessor_config.json", "image_size")


def test_the_same_in_siglip(siglip_folder):
    changed_json(siglip_folder / "preprocessor_config.json", size={"height": 64, "width": 64})
    refused(siglip_folder, "PREPROCESSOR_MISMATCH", "32 pixels")


def test_a_file_that_may_not_be_read_is_named(folder):
    path = folder / "tokenizer.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelError, match=r"NO_TOKENIZER|MODEL_FILE_UNREADABLE"):
        load_backbone(str(folder))


# Folders damaged in every way that came to mind.


def cut(rng, path, content):
    path.write_bytes(content[: rng.randrange(len(content))])


def emptied(rng, path, content):
    path.write_bytes(b"")


def flipped(rng, path, content):
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 20])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)


def zeroed(rng, path, content):
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 100, 10_000]))
    path.write_bytes(content[:start] + b"\0" * (end - start) + content[end:])


def page(rng, path, content):
    path.write_text("<!DOCTYPE html><html><body>Too many requests</body></html>")


def pointer(rng, path, content):
    path.write_text(POINTER)


def removed(rng, path, content):
    path.unlink()


def swapped(rng, path, content):
    """Another file of the folder in this one's place."""
    other = rng.choice(sorted(each for each in path.parent.iterdir() if each != path))
    path.write_bytes(other.read_bytes())


def another_value(rng, path, content):
    """A number, text, or list of a JSON file replaced by something else."""
    if path.suffix != ".json" or path.stat().st_size > 50_000:
        return flipped(rng, path, content)
    table = json.loads(content)
    place = table
    while isinstance(place, dict) and place:
        key = rng.choice(sorted(place))
        if not isinstance(place[key], dict) or not place[key] or rng.random() < 0.2:
            place[key] = rng.choice([None, -1, 0, 10**6, "x", [], {}, True, 3.5, ["a"]])
            break
        place = place[key]
    path.write_text(json.dumps(table))
    return None


WITHOUT_FOLDER = (
    "TOKENIZER_UNUSABLE",
    "TEXT_TOWER_UNUSABLE",
    "PREPROCESSOR_MISMATCH",
    "WEIGHTS_ELSEWHERE",
    "SPECIAL_TOKEN",
)
"""What is found only when the model is tried, or names a file of it."""

DAMAGES = (cut, emptied, flipped, zeroed, page, pointer, removed, swapped, another_value, another_value, another_value)


def outcome(folder, capfd):
    """A code; or "as plain" where what is loaded computes exactly what plain transformers makes of these files."""
    try:
        ours = our_scores(folder, ["house"])
    except DpfplError as error:
        refusal = error
    else:
        assert float((ours - plain_scores(folder, ["house"])).abs().max()) < 1e-4
        return "as plain"
    assert refusal.advice, refusal
    assert str(folder) in str(refusal) or refusal.code in WITHOUT_FOLDER, refusal
    assert "Traceback" not in capfd.readouterr().err
    return refusal.code


def damaged(seed, sound, target):
    rng = random.Random(seed)
    shutil.copytree(sound, target)
    path = rng.choice(sorted(each for each in target.iterdir() if each.is_file()))
    rng.choice(DAMAGES)(rng, path, path.read_bytes())
    return target


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 300), marks=pytest.mark.long)], ids=["60", "240"])
def test_damaged_folders_each_has_a_code_or_is_plain(folder, siglip, tmp_path, capfd, seeds):
    chinese = write_model("chinese_clip", "WordPiece", tmp_path / "chinese", seed=1)
    found = []
    for seed in seeds:
        target = damaged(seed, (folder, siglip, chinese)[seed % 3], tmp_path / str(seed))
        found.append(outcome(target, capfd))
        shutil.rmtree(target)
    assert sum(code != "as plain" for code in found) > len(found) / 2, found
    assert len(set(found)) > 7, found


def test_a_foreign_family_is_named_before_anything_that_its_folder_lacks(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "preprocessor_config.json").unlink()
    (folder / "model.safetensors").write_text(POINTER)
    changed_json(folder / "config.json", model_type="foreign")
    refused(folder, "UNKNOWN_FAMILY", "'foreign'")
    (folder / "config.json").write_text(POINTER)
    refused(folder, "GIT_LFS_POINTER", "config.json")
