"""An exported prompt: stock tools compute the same logits with it, and what must not leave does not."""

import dataclasses
import json
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.numpy import load_file
from transformers import CLIPModel

from card_code import code_blocks, packages_named, run_card
from dpfpl_client.agent.core import evaluation_digest
from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import LEDGER_FILE, Ledger
from dpfpl_client.agent.ledger.view import summarise
from dpfpl_client.agent.store import Choice, DiskStore
from dpfpl_client.learning.evidence import SiteHead
from dpfpl_client.learning.learner import initial_context
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.site.settings import load_site
from dpfpl_client.use.exporting import export as export_module
from dpfpl_client.use.exporting.adapter import NotExpressibleError, build_adapter
from dpfpl_client.use.exporting.card import BaseModel, Facts, model_card
from dpfpl_client.use.exporting.export import export_prompt, write_export
from dpfpl_client.use.prompt import SitePrompt, load_prompt
from dpfpl_common.errors import ConfigError, PrivacyError, RefusedError, StateError
from dpfpl_common.experiment import PrivacySettings, RoundSettings, parse_experiment
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events
from dpfpl_common.wire.payloads import EvaluateRequest
from dpfpl_models import embedded_model_path
from installed_view import closure_of, make_view

BASE = BaseModel("base", "experiment")

STOCK = textwrap.dedent(
    """
    import json, os, sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0].startswith("dpfpl"):
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Blocker())
    folder, site_packages = sys.argv[1:]
    sys.path[:] = [p for p in sys.path if "dpfpl" not in p and not p.endswith("/src")] + [site_packages]
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(folder)
    readme = open("README.md", encoding="utf-8").read()
    for part in readme.split("```python\\n")[1:]:
        exec(part.split("```")[0])
    assert not [name for name in sys.modules if name.startswith("dpfpl")], "our packages were used"
    print(json.dumps(logits[0].tolist()))
    """
)
"""Runs the very code of the exported model card, where only the packages are installed that the card names."""


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("embedded")


@pytest.fixture
def prompt(trained_site):
    """A prompt well away from where one begins and the same in every run, whatever noise the site drew: nothing agrees
    by chance, and no difference is small by chance.
    """
    learned = load_prompt(trained_site.parent)
    drift = np.random.default_rng(5).normal(0, 0.3, learned.personal_context.shape)
    moved = drift.astype("<f4")  # as an export holds it, so that it reads back the same
    return dataclasses.replace(learned, personal_context=moved.astype(np.float64))


def rule(site_file, line):
    """Puts a line into policy.toml, instead of the one with its key."""
    policy = site_file.parent / "policy.toml"
    others = [other for other in policy.read_text().splitlines() if other.split(" =")[0] != line.split(" =")[0]]
    policy.write_text("\n".join([line, *others]))


def our_logits(prompt, backbone, image, context=None):
    tokens = backbone.class_tokens(prompt.experiment.classes, prompt.experiment.prompt.num_context)
    with torch.inference_mode():
        text = backbone.text_features(prompt.context(backbone) if context is None else context, tokens)
        (feature,) = backbone.image_features([image])
        return (backbone.logit_scale * text @ feature).numpy()


def stock_logits(folder, image):
    image.save(folder / "photo.png")
    view = folder.parent / "installed"
    make_view(view, closure_of(packages_named(folder)))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", STOCK, str(folder), str(view)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def image():
    pixels = np.random.default_rng(2).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.slow
def test_plain_transformers_and_peft_give_the_same_logits_without_our_packages(prompt, backbone, tmp_path, image):
    exported = write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    assert exported.no_adapter == ""
    found, expected = stock_logits(tmp_path / "out", image), our_logits(prompt, backbone, image)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    untrained = our_logits(prompt, backbone, image, initial_context(backbone, prompt.experiment))
    assert np.abs(found - untrained).max() > 0.1  # the adapter is what makes them agree


def as_predicted(prompt, backbone, image):
    """What ``dpfpl-client predict`` says of an image, by class."""
    (found,) = prompt.predict(backbone, [image], len(prompt.experiment.classes))
    return dict(zip(found.classes, found.probabilities, strict=True))


def test_the_cards_code_as_it_stands_gives_what_predict_gives(prompt, backbone, tmp_path, image):
    """Through AutoPeftModel, and merged into the base model through the stock pipeline."""
    write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    image.save(tmp_path / "out/photo.png")
    by_model, by_pipeline = run_card(tmp_path / "out")
    expected = as_predicted(prompt, backbone, image)
    assert by_model == pytest.approx(expected, abs=1e-5)
    assert {row["label"]: row["score"] for row in by_pipeline} == pytest.approx(expected, abs=1e-5)
    nothing = np.zeros_like(prompt.personal_context)
    flat = dataclasses.replace(prompt, global_context=nothing.astype(np.float32), personal_context=nothing)
    assert by_model != pytest.approx(as_predicted(flat, backbone, image), abs=1e-3)


def with_class_vectors(prompt, backbone):
    vectors = np.random.default_rng(3).normal(0, 1, (2, backbone.feature_size))
    head = SiteHead(vectors, 3.0, np.array([0.5, -0.5]), np.array([0.8, 0.2]), 0.5)
    return dataclasses.replace(prompt, exported=head)


def test_the_cards_code_for_class_vectors_gives_what_predict_gives(prompt, backbone, tmp_path, image):
    with_vectors = with_class_vectors(prompt, backbone)
    write_export(with_vectors, backbone, tmp_path / "out", Facts(site="north"))
    image.save(tmp_path / "out/photo.png")
    by_vectors, by_prompt, _ = run_card(tmp_path / "out")
    assert by_vectors == pytest.approx(as_predicted(with_vectors, backbone, image), abs=1e-5)
    card = tmp_path / "out/README.md"
    card.write_text(card.read_text().replace(' + head["mix"]', ""))
    equally_often, *_ = run_card(tmp_path / "out")  # as the card says: what a moment put into the bias stays
    assert equally_often == pytest.approx(as_predicted(with_vectors.with_usual_mix(0), backbone, image), abs=1e-5)
    assert equally_often != pytest.approx(by_vectors, abs=1e-2)
    assert by_prompt == pytest.approx(as_predicted(prompt, backbone, image), abs=1e-5)
    write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    assert not (tmp_path / "out/class_vectors.safetensors").exists()  # it would be taken for this prompt's
    assert len(code_blocks(tmp_path / "out")) == 2


def test_another_usual_mix_of_an_export_is_that_of_exporting_anew(prompt, backbone, tmp_path, image):
    with_vectors = with_class_vectors(prompt, backbone)
    found = []
    for mix in (0.5, 0.9):
        write_export(with_vectors.with_usual_mix(mix), backbone, tmp_path / str(mix), Facts(site="north"))
        found.append(load_prompt(tmp_path / str(mix)))
        assert json.loads((tmp_path / str(mix) / "prompt.json").read_text())["experiment"]["prompt"]["usual_mix"] == mix
    usual, other = found
    moved = usual.with_usual_mix(0.9)
    np.testing.assert_array_equal(moved.head(backbone).bias, other.head(backbone).bias)
    assert moved.predict(backbone, [image], 2) == other.predict(backbone, [image], 2)
    assert not np.allclose(usual.head(backbone).bias, other.head(backbone).bias)


def front_matter(folder):
    return ModelCard.load(folder / "README.md").data


@pytest.mark.privacy
def test_the_hub_is_told_noised_scores_and_never_exact_ones(prompt, backbone, tmp_path):
    scores = [
        {"candidate": "plain text", "value": 0.613, "interval": [0.55, 0.67]},
        {"candidate": "this site's prompt", "value": None, "interval": [0.0, 1.0]},
    ]
    exact = {"personal_local": 0.97123}
    write_export(prompt, backbone, tmp_path / "a", Facts(site="north", scores=scores, metrics=exact, licence="mit"))
    data = front_matter(tmp_path / "a")
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "peft", "zero-shot-image-classification")
    (result,) = data.eval_results
    assert (result.metric_value, result.dataset_type) == (0.613, "private")
    assert result.metric_name == "plain text, noised, 95 % interval 0.550 to 0.670"
    write_export(prompt, backbone, tmp_path / "b", Facts(site="north", metrics=exact))
    head = (tmp_path / "b/README.md").read_text().split("---")[1]
    assert "97" not in head
    assert "model-index" not in head
    assert front_matter(tmp_path / "b").license == "unknown"


def test_merged_text_features_do_where_peft_cannot(prompt, backbone, tmp_path, image, monkeypatch):
    def cannot(*arguments):
        raise NotExpressibleError("its tokenizer is no byte-pair tokenizer")

    monkeypatch.setattr(export_module, "build_adapter", cannot)
    exported = write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    assert "byte-pair" in exported.no_adapter
    assert not (tmp_path / "out/adapter_config.json").exists()
    assert "PEFT cannot express this prompt" in (tmp_path / "out/README.md").read_text()
    image.save(tmp_path / "out/photo.png")
    (found,) = run_card(tmp_path / "out")
    assert found == pytest.approx(as_predicted(prompt, backbone, image), abs=1e-5)


def test_a_checkpoint_that_finds_its_end_by_the_largest_id_is_served_as_well(prompt, backbone, tmp_path):
    """OpenAI's own checkpoints say ``eos_token_id = 2``; an id behind the vocabulary would be taken for the end."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    shutil.copytree(embedded_model_path(), tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    adapter = build_adapter(backbone, prompt.context(backbone), prompt.experiment.classes, "base")
    (tmp_path / "out").mkdir()
    adapter.write(tmp_path / "out", backbone.token_embedding)
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(tmp_path / "base"), str(tmp_path / "out")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    with torch.inference_mode():
        found = model.get_text_features(**tokenizer(list(adapter.prompts), padding=True, return_tensors="pt"))
        found = torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1)
    tokens = backbone.class_tokens(prompt.experiment.classes, prompt.experiment.prompt.num_context)
    np.testing.assert_allclose(found, backbone.text_features(prompt.context(backbone), tokens), atol=1e-5)


def test_the_model_itself_is_left_as_it_was(prompt, backbone, tmp_path):
    before = backbone.token_embedding.weight.clone()
    write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    assert torch.equal(before, backbone.token_embedding.weight)
    assert not backbone.token_embedding.weight.requires_grad


@pytest.mark.parametrize("classes", [("bright", "dark"), ("Café № 3", "x-ray: pneumonia."), ("bowl", "outside")])
def test_the_exported_tokenizer_reads_class_names_as_the_models_own(backbone, classes):
    """The last words that the vocabulary learned are taken for the context, unless a class is called so."""
    context = torch.zeros(6, backbone.width)
    adapter = build_adapter(backbone, context, classes, "base")
    needed = {i for name in classes for i in backbone.tokenizer(f"{name}.", add_special_tokens=False)["input_ids"]}
    assert len(set(adapter.token_ids)) == 6
    assert not needed & set(adapter.token_ids)


def test_more_vectors_than_words_to_spare_is_said(backbone):
    with pytest.raises(NotExpressibleError, match="to spare"):
        build_adapter(backbone, torch.zeros(1000, backbone.width), ("a", "b"), "base")


def test_the_export_adds_up(prompt, backbone, tmp_path):
    write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    parts = load_file(tmp_path / "out" / "prompt.safetensors")
    personal, initial = parts["personal_context"], initial_context(backbone, prompt.experiment).numpy()
    assert np.abs(parts["global_context"]).max() > 0
    np.testing.assert_allclose(parts["context"], initial + parts["global_context"] + personal, atol=1e-6)
    np.testing.assert_allclose(parts["left"] @ parts["right"] + parts["residual"], personal, atol=1e-6)
    assert parts["left"].shape == (4, 2)
    assert parts["right"].shape == (2, backbone.width)
    about = json.loads((tmp_path / "out" / "prompt.json").read_text())
    assert (about["rounds"], about["model_fingerprint"]) == (1, backbone.fingerprint)
    assert parse_experiment(json.dumps(about["experiment"])) == prompt.experiment
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]


def test_an_export_can_be_loaded_again(prompt, backbone, tmp_path, image):
    write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    again = load_prompt(tmp_path / "out")
    assert str(again) == str(prompt)
    assert again.predict(backbone, [image], 2) == prompt.predict(backbone, [image], 2)
    with pytest.raises(StateError, match="NO_EXPERIMENT"):
        load_prompt(tmp_path / "out", "other")
    (tmp_path / "out/prompt.safetensors").write_bytes(b"x")
    with pytest.raises(StateError, match="EXPORT_DAMAGED"):
        load_prompt(tmp_path / "out")


def test_the_card_states_what_a_recipient_must_know(trained_site, backbone, tmp_path):
    settings = load_site(trained_site)
    export_prompt(settings, load_prompt(settings.state_folder), backbone, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for part in ("library_name: peft", "bright, dark", backbone.fingerprint, "prompt recipient", "Intended use"):
        assert part in card
    for who in ("anyone who receives a site's personalised prompt", "another site", "the operator of the server"):
        assert f"| {who}" in card
    (row,) = summarise(settings)["experiments"]
    (shown,) = re.findall(r"ledger was charged ([0-9.]+) for this experiment", card)
    assert row["epsilon"] <= float(shown) <= row["epsilon"] + 0.0011
    assert str(trained_site.parent) not in card
    assert "differential" not in card.lower()
    counts = {"training images: 8", "8 images", "4 images"}
    assert not [count for count in counts if count in card]


@pytest.mark.privacy
def test_todays_policy_decides_which_accuracies_the_card_states(trained_site, backbone, tmp_path):
    settings = load_site(trained_site)
    store = DiskStore(settings.state_folder)
    record = store.read("pilot", 1)
    told = dataclasses.replace(record.reply, metrics={"personal_local": 0.97})
    store.write("pilot", 1, dataclasses.replace(record, reply=told))
    for metrics, shown in (("exact", "97.0 %"), ("coarse", "95.0 %"), ("none", "none is stated")):
        rule(trained_site, f'metrics = "{metrics}"')
        export_prompt(settings, load_prompt(settings.state_folder), backbone, tmp_path / metrics)
        card = (tmp_path / metrics / "README.md").read_text()
        assert shown in card
        assert metrics == "exact" or "97.0" not in card


@pytest.mark.privacy
@pytest.mark.parametrize("metrics", ["noised", "none"])
def test_the_card_states_noised_scores_with_their_intervals(trained_site, backbone, tmp_path, monkeypatch, metrics):
    told = [{"candidate": "plain text", "value": 0.613, "interval": [0.55, 0.67]}]
    monkeypatch.setattr(export_module, "released_scores", lambda *_: told)
    rule(trained_site, f'metrics = "{metrics}"')
    settings = load_site(trained_site)
    export_prompt(settings, load_prompt(settings.state_folder), backbone, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("| plain text | 61.3 % | 55.0 to 67.0 % |" in card) == (metrics == "noised")
    assert ("noised counts of right answers, which" in card) == (metrics == "noised")


@pytest.mark.privacy
def test_of_class_vectors_the_card_states_the_votes_choice_or_noised_scores_but_nothing_else(prompt, backbone):
    with_vectors = with_class_vectors(prompt, backbone)
    noised = [{"candidate": "class vectors, shared prompt as prior", "value": 0.613, "interval": [0.55, 0.67]}]
    row = "| what the site classifies with: class vectors | 91.0 % |"

    def card(metrics, scores=()):
        return model_card(with_vectors, backbone, Facts(site="north", metrics=metrics, scores=scores), BASE, "")

    exact = {"personal_local": 0.7321, "global_local": 0.7}
    assert row in card(exact | {"both_local": 0.91}, noised)
    assert "73.2 %" in card(exact | {"both_local": 0.91}, noised)
    without = card(exact, noised)
    assert "| class vectors, shared prompt as prior | 61.3 % |" in without
    assert "73.2 %" not in without
    assert "No accuracy of what the site classifies with may leave" in card(exact)
    plain = model_card(prompt, backbone, Facts(site="north", metrics=exact, scores=noised), BASE, "")
    assert "73.2 %" in plain


@pytest.mark.privacy
def test_the_accuracy_of_class_vectors_is_the_last_evaluations_of_this_very_prompt(trained_site, backbone, tmp_path):
    """Of what released values decide: the site's own exact choice and private images have no number."""
    settings, size = load_site(trained_site), backbone.feature_size
    store, learned = DiskStore(settings.state_folder), load_prompt(settings.state_folder)
    privacy = PrivacySettings(mechanism="one_shot", trust="local", noise_multiplier=1.0, nominal_site_size=8)
    rounds = RoundSettings(number=2)
    experiment = dataclasses.replace(learned.experiment, name="rows", privacy=privacy, rounds=rounds)
    store.remember(experiment)
    store.write("rows", 1, store.read("pilot", 1))
    pool = np.ones((3, size + 2), "<f4")
    store.write_final("rows", learned.global_context, Choice("evidence", pool, np.array([0.5, 0.5]), None))
    told = {"both_local": 0.9123, "text_local": 0.1, "personal_local": 0.97}
    ledger = Ledger(settings.state_folder / LEDGER_FILE, Registry(settings.registry_folder))
    asked = EvaluateRequest(experiment, 2, learned.global_context, pool, "evidence")
    ledger.record_evaluation("rows", evaluation_digest(asked), {"metrics": told})
    ledger.close()

    def stated(name, prompt, metrics="exact", settings=settings):
        rule(trained_site, f'metrics = "{metrics}"')
        export_prompt(settings, prompt, backbone, tmp_path / name)
        return re.findall(r"^\| .* \| ([\d.]+) % \|$", (tmp_path / name / "README.md").read_text(), re.MULTILINE)

    prompt = load_prompt(settings.state_folder, "rows")
    assert stated("exact", prompt) == ["91.2"]
    assert stated("coarse", prompt, "coarse") == ["90.0"]
    assert stated("none", prompt, "none") == []
    assert stated("mix", prompt.with_usual_mix(0.9)) == []
    assert stated("other", dataclasses.replace(prompt, global_context=prompt.global_context + 1)) == []
    own = dataclasses.replace(settings, data=dataclasses.replace(settings.data, public=False))
    assert stated("private", prompt, settings=own) == []


@pytest.mark.privacy
def test_the_cards_epsilons_are_rounded_up_follow_the_rounds_and_are_no_claim_of_seeded_noise(prompt, backbone):
    card = model_card(prompt, backbone, Facts(site="north"), BASE, "")
    more = model_card(dataclasses.replace(prompt, round=9), backbone, Facts(site="north"), BASE, "")

    def epsilons(text):
        return [float(line.split("|")[2]) for line in text.splitlines() if line.endswith("| 1e-05 |")]

    experiment = prompt.experiment
    for text, rounds in ((card, 1), (more, 9)):
        exact = [epsilon([e], 1e-5) for e in planned_events(experiment, rounds * experiment.rounds.local_steps)]
        for shown, computed in zip(epsilons(text), exact, strict=True):
            assert computed <= shown <= computed + 0.0011
    assert "nothing is protected" not in card
    assert "nothing is protected" in model_card(prompt, backbone, Facts(site="north", seeded=True), BASE, "")


@pytest.mark.privacy
@pytest.mark.parametrize(
    ("line", "code"),
    [('experiments = ["other"]', "EXPERIMENT_NOT_APPROVED"), ('trust = ["local"]', "TRUST_NOT_ALLOWED")],
)
def test_a_policy_that_does_not_admit_the_experiment_forbids_the_export(trained_site, backbone, tmp_path, line, code):
    settings = load_site(trained_site)
    rule(trained_site, line)
    with pytest.raises(RefusedError) as error:
        export_prompt(settings, load_prompt(settings.state_folder), backbone, tmp_path / "out")
    assert error.value.code == code
    (trained_site.parent / "policy.toml").unlink()
    with pytest.raises(ConfigError, match="NO_POLICY"):
        export_prompt(settings, load_prompt(settings.state_folder), backbone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.privacy
def test_a_prompt_of_the_unit_site_is_not_exported(prompt, backbone, tmp_path):
    privacy = dataclasses.replace(prompt.experiment.privacy, unit="site")
    unit_site = dataclasses.replace(prompt, experiment=dataclasses.replace(prompt.experiment, privacy=privacy))
    with pytest.raises(PrivacyError, match="PROMPT_MUST_STAY"):
        write_export(unit_site, backbone, tmp_path / "out", Facts(site="north"))
    assert not (tmp_path / "out").exists()


@pytest.mark.privacy
def test_exporting_charges_nothing(trained_site, backbone, tmp_path):
    settings = load_site(trained_site)

    def charged():
        with sqlite3.connect(settings.state_folder / "ledger.sqlite") as ledger:
            return ledger.execute("SELECT * FROM charges").fetchall()

    before = charged()
    for _ in range(2):
        export_prompt(settings, load_prompt(settings.state_folder), backbone, tmp_path / "out")
    assert before == charged() != []


def test_a_folder_with_something_else_is_left_alone_and_one_that_cannot_be_made_is_named(prompt, backbone, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StateError, match="NOT_AN_EXPORT_FOLDER"):
        write_export(prompt, backbone, tmp_path, Facts(site="north"))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["thesis.txt"]
    with pytest.raises(StateError, match="CANNOT_WRITE"):
        write_export(prompt, backbone, tmp_path / "thesis.txt" / "out", Facts(site="north"))


def test_another_model_than_the_embedded_one_stays_where_it_is(prompt, tmp_path):
    """Only the embedded model comes along; the name of any other is the experiment's, never a path of the site."""
    folder = tmp_path / "private" / "model"
    shutil.copytree(embedded_model_path(), folder)
    (folder / "extra.txt").write_text("another fingerprint")
    other = load_backbone(str(folder))
    experiment = dataclasses.replace(
        prompt.experiment, model=dataclasses.replace(prompt.experiment.model, id="org/clip", fingerprint="")
    )
    exported = write_export(
        SitePrompt(experiment, prompt.global_context, prompt.personal_context, 1), other, tmp_path / "out", Facts("n")
    )
    assert not [name for name in exported.files if name.startswith("base_model")]
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == "org/clip"
    for path in filter(Path.is_file, (tmp_path / "out").rglob("*")):
        assert str(tmp_path).encode() not in path.read_bytes()
