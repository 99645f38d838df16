"""A real site whose data are questions: init, check, a round with its charge, predict, export; and what it refuses."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import torch

from dpfpl_bench.demo.drawn_questions import drawn_sites, write_questions
from dpfpl_client.agent.build import build_agent
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import DataError, RefusedError
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
)
from dpfpl_common.wire.payloads import EvaluateRequest, TrainRequest

INIT_TEXT = "please answer the question"

POLICY = """
experiments = ["*"]
max_epsilon_per_experiment = 50.0
max_epsilon_lifetime = 100.0
metrics = "exact"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.set_num_threads(1)
    return write_questions(tmp_path_factory.mktemp("data"), drawn_sites(1, 24, 12, seed=9)[0])


@pytest.fixture
def site_of(tmp_path, command):
    """site_of(data): site.toml as ``init`` writes it, and a policy."""

    def make(data):
        assert command("init", "--data", data, "--site", tmp_path / "site.toml", "--name", "north")[0] == 0
        text = (tmp_path / "site.toml").read_text()
        assert 'source = "questions"' in text
        assert 'model = "embedded-vlm"' in text
        text = text.replace('source = "questions"', 'source = "questions"\npublic = true')  # accuracies are exact
        (tmp_path / "site.toml").write_text('registry = "registry"\n' + text)
        (tmp_path / "policy.toml").write_text(POLICY)
        (tmp_path / "policy.toml").chmod(0o640)
        return tmp_path / "site.toml"

    return make


@pytest.fixture
def site(site_of, data):
    return site_of(data)


def experiment_for(width, *, classes=(), task="vqa", max_answer_tokens=8, init_text=INIT_TEXT, **privacy):
    settings = {"noise_multiplier": 1.0, "nominal_site_size": 24, "sample_rate": 0.5}
    return Experiment(
        name="asked" if task == "vqa" else "classes",
        classes=classes,
        sites=("north", "south"),
        model=ModelSettings(width=width),
        prompt=PromptSettings(num_context=4, rank=2, init_text=init_text),
        privacy=PrivacySettings(**{"mechanism": "per_step", **settings, **privacy}),
        rounds=RoundSettings(number=2, local_steps=2),
        task=TaskSettings(kind=task, max_answer_tokens=max_answer_tokens),
    )


def zeros(experiment):
    return np.zeros(experiment.context_shape, "<f4")


def test_check_counts_questions_and_names_none_of_them(site, command):
    code, out, _ = command("check", "--site", site, "--json")
    facts = json.loads(out)["facts"]
    assert facts["questions"] == {"train": 24, "test": 12}
    assert facts["training_images"] == 24
    assert code in (0, 1)  # a site without a server can only be used alone: a warning


@pytest.mark.privacy
def test_a_round_is_charged_once_and_repeated_from_the_store(site):
    built = build_agent(load_site(site))
    experiment = experiment_for(built.backbone.width)
    first = built.agent.train(TrainRequest(experiment, 1, zeros(experiment)))
    assert first.update.any()
    assert first.metrics["zero_shot_local"] > 0.3
    again = built.agent.train(TrainRequest(experiment, 1, zeros(experiment)))
    assert np.array_equal(first.update, again.update)
    ledger = built.agent._ledger
    assert {event.steps for event in ledger.events("asked")} == {2}
    built.lock.release()


@pytest.mark.privacy
@pytest.mark.parametrize("field", ["question", "answer"])
def test_an_edited_line_is_another_data_set(site, data, tmp_path, field):
    build_agent(load_site(site)).lock.release()
    shutil.copytree(data.parent, tmp_path / "edited")
    site.write_text(site.read_text().replace(str(data.parent), str(tmp_path / "edited")))
    file = tmp_path / "edited" / data.name
    first, *others = file.read_text().splitlines()
    line = json.loads(first) | {field: "is it the other one?"}
    file.write_text("\n".join([json.dumps(line), *others]) + "\n")
    with pytest.raises(DataError) as caught:
        build_agent(load_site(site))
    assert caught.value.code == "DATASET_CHANGED"


def test_the_prompt_is_asked_and_exported(site, command, tmp_path, data):
    built = build_agent(load_site(site))
    experiment = experiment_for(built.backbone.width)
    built.agent.train(TrainRequest(experiment, 1, zeros(experiment), evaluate=False))
    built.agent.evaluate(EvaluateRequest(experiment, 1, zeros(experiment)))
    built.lock.release()
    picture = data.parent / "pictures" / "0000.png"
    code, out, _ = command("predict", picture, "--site", site, "--question", "what colour is it?", "--json")
    (entry,) = json.loads(out)
    assert code == 0
    assert len(entry["classes"]) == 1
    assert "NO_QUESTION" in "".join(command("predict", picture, "--site", site)[1:])
    code, out, err = command("export", "--out", tmp_path / "out", "--site", site, "--json")
    assert code == 0, err
    assert "between picture and question" in (tmp_path / "out" / "README.md").read_text()
    assert "base_model/model.safetensors" in json.loads(out)["files"]  # though the experiment names no model
    code, out, _ = command("export", "--out", tmp_path / "out", "--site", site)
    assert "how to use the prompt without one" in out
    assert "merged" not in out


def test_questions_where_classes_are_meant_send_noise_and_nothing_else(site):
    """A refusal would tell what kind of data the site has; it trains on nothing, like a site without the classes."""
    built = build_agent(load_site(site))
    experiment = experiment_for(built.backbone.width, classes=("red", "blue"), task="classify")
    reply = built.agent.train(TrainRequest(experiment, 1, zeros(experiment)))
    assert reply.update.any()
    assert reply.metrics == {}
    built.lock.release()


@pytest.mark.privacy
def test_no_question_answer_or_name_is_in_what_leaves(site, data):
    from dpfpl_common.wire.codec import encode_reply

    built = build_agent(load_site(site))
    request = TrainRequest(experiment_for(built.backbone.width), 1, zeros(experiment_for(built.backbone.width)))
    sent = encode_reply(built.agent.train(request), request).SerializeToString()
    built.lock.release()
    for line in data.read_text(encoding="utf-8").splitlines():
        for secret in json.loads(line).values():
            if len(secret) > 5:
                assert secret.encode() not in sent


@pytest.fixture
def caption_site(tmp_path, site_of):
    data = write_questions(tmp_path / "data", drawn_sites(1, 24, 12, seed=9, captions=True)[0])
    assert "question" not in data.read_text()
    return site_of(data)


def test_captions_are_counted_learned_written_and_exported(caption_site, command, tmp_path):
    facts = json.loads(command("check", "--site", caption_site, "--json")[1])["facts"]
    assert facts["captions"] == {"train": 24, "test": 12}
    assert "questions" not in facts
    built = build_agent(load_site(caption_site))
    experiment = experiment_for(built.backbone.width, task="caption")
    reply = built.agent.train(TrainRequest(experiment, 1, zeros(experiment)))
    built.lock.release()
    assert 0 <= reply.metrics["zero_shot_local"] <= 1
    picture = tmp_path / "data" / "pictures" / "0000.png"
    for more in ((), ("--question", "what colour is it?")):
        code, out, err = command("predict", picture, "--site", caption_site, "--json", "--unfinished", *more)
        assert code == 0, err
        assert json.loads(out)[0]["classes"][0]
    code, out, err = command("export", "--out", tmp_path / "out", "--site", caption_site, "--json", "--unfinished")
    assert code == 0, err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "behind the picture, before the caption" in card
    assert "word overlap (F1)" in card


@pytest.mark.parametrize(("task", "warned"), [("vqa", True), ("caption", False)])
def test_check_warns_where_a_plan_asks_and_lines_have_no_questions(caption_site, command, tmp_path, task, warned):
    plan = tmp_path / "plan.json"
    plan.write_text(experiment_for(128, task=task).to_json())
    report = json.loads(command("check", "--site", caption_site, "--plan", plan, "--json")[1])
    found = [text for text in report["warnings"] if "NO_QUESTIONS" in text]
    assert bool(found) == warned
    assert all("24 of 24" in text for text in found)


def checked(command, site, *more):
    return json.loads(command("check", "--site", site, "--json", *more)[1])


def use_model(site, model):
    site.write_text(site.read_text().replace('model = "embedded-vlm"', f'model = "{model}"'))


def codes(texts):
    return [text.rpartition("[")[2].rstrip("]") for text in texts if text.endswith("]")]


def test_check_says_that_a_model_answers_no_questions(site, command):
    assert "NO_ANSWERS" not in codes(checked(command, site)["warnings"])
    use_model(site, "embedded")
    report = checked(command, site)
    assert report["facts"]["model"]["tasks"] == ["classify"]
    (warning,) = [text for text in report["warnings"] if "NO_ANSWERS" in text]
    assert "'clip'" in warning
    assert '"embedded-vlm"' in warning


def test_check_says_that_a_model_for_questions_has_only_classes(site, command, image_folder, tmp_path):
    images = tmp_path / "coloured"  # words that this model knows apart
    for split in ("train", "test"):
        for shown, name in (("bright", "red"), ("dark", "blue")):
            shutil.copytree(image_folder / split / shown, images / split / name)
    assert command("init", "--data", images, "--site", site)[0] == 0
    (warning,) = [text for text in checked(command, site)["warnings"] if "NO_QUESTIONS" in text]
    assert "classify" in warning
    plan = site.parent / "plan.json"
    plan.write_text(experiment_for(96, classes=("red", "blue"), task="classify").to_json())
    report = checked(command, site, "--plan", plan)  # the plan decides: this one can be served
    assert report["errors"] == []
    assert "NO_QUESTIONS" not in codes(report["warnings"])


@pytest.mark.parametrize(
    ("model", "plan", "code"),
    [
        ("embedded-vlm", {}, None),
        ("embedded-vlm", {"width": 128}, "WRONG_WIDTH"),
        ("embedded-vlm", {"init_text": "please answer the question about it"}, "INIT_TEXT_TOO_LONG"),
        ("embedded-vlm", {"mechanism": "one_shot", "trust": "local", "task": "classify"}, "NO_CLASS_FEATURES"),
        ("embedded", {"width": 128}, "NO_ANSWERS"),
    ],
    ids=str,
)
def test_what_the_agent_would_refuse_for_its_model_is_an_error_of_the_check(site, command, tmp_path, model, plan, code):
    """Before any site has computed: the very errors of the first round."""
    use_model(site, model)
    classes = ("red", "blue") if plan.get("task") == "classify" else ()
    experiment = experiment_for(**{"width": 96, "classes": classes, **plan})
    (tmp_path / "plan.json").write_text(experiment.to_json())
    errors = checked(command, site, "--plan", tmp_path / "plan.json")["errors"]
    assert codes(errors) == ([] if code is None else [code])
    built = build_agent(load_site(site))
    try:
        request = TrainRequest(experiment, 1, zeros(experiment), evaluate=False)
        if code is None:
            built.agent.train(request)
            return
        with pytest.raises(RefusedError) as caught:
            built.agent.train(request)
        assert str(caught.value) == errors[0]
        assert built.agent._ledger.events(experiment.name) == [], "nothing is charged"
    finally:
        built.lock.release()


def test_another_model_is_named(site, command, tmp_path):
    experiment = experiment_for(96)
    other = dataclasses.replace(experiment, model=ModelSettings(width=96, id="some/model", fingerprint="f" * 64))
    (tmp_path / "plan.json").write_text(other.to_json())
    (error,) = checked(command, site, "--plan", tmp_path / "plan.json")["errors"]
    assert "OTHER_MODEL" in error
    assert "'some/model'" in error


def test_answers_that_can_never_be_right_are_counted_before_and_at_the_start(
    site, data, command, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("dpfpl_client"), "propagate", True)  # as it is before an agent process
    long = data.with_name("long.jsonl")
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    for line in lines[::2]:
        line["answer"] = "red blue red blue red"
    long.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    assert command("init", "--data", long, "--site", site)[0] == 0
    for limit, warned in ((4, True), (5, False)):
        experiment = experiment_for(96, max_answer_tokens=limit)
        (tmp_path / "plan.json").write_text(experiment.to_json())
        found = [t for t in checked(command, site, "--plan", tmp_path / "plan.json")["warnings"] if "ANSWERS_TOO" in t]
        assert bool(found) == warned
        assert all("18 of 36 answers" in text and "4 tokens" in text for text in found)
    built = build_agent(load_site(site))
    experiment = experiment_for(96, max_answer_tokens=4)
    for _ in range(2):
        built.agent.train(TrainRequest(experiment, 1, zeros(experiment), evaluate=False))
    built.lock.release()
    records = {id(record): record.getMessage() for record in caplog.records}  # one may come by two handlers
    (logged,) = [text for text in records.values() if "ANSWERS_TOO_LONG" in text]
    assert "18 of 36" in logged
    assert "TOO_LONG" not in (site.parent / "state" / "audit.jsonl").read_text()


def test_check_counts_the_lines_that_are_too_long_for_the_model(site, data, command, tmp_path, monkeypatch):
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    for line in lines[:3]:
        line["question"] = "what " * 30
    long = data.with_name("long_turns.jsonl")
    long.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    assert command("init", "--data", long, "--site", site)[0] == 0
    (tmp_path / "plan.json").write_text(experiment_for(96).to_json())
    assert "TURN_TOO_LONG" not in codes(checked(command, site, "--plan", tmp_path / "plan.json")["warnings"])
    monkeypatch.setattr("dpfpl_client.models.generative.language._longest", lambda config: 48)
    (found,) = [t for t in checked(command, site, "--plan", tmp_path / "plan.json")["warnings"] if "TOO_LONG" in t]
    assert f"3 of {len(lines)} lines" in found


def test_lines_that_the_model_cannot_be_told_are_left_out_at_the_start(site, data, command, tmp_path, monkeypatch):
    """A token without a vector would have ended a round; where nothing else is left, the agent does not start."""
    from dpfpl_client.models.generative.backbone import GenerativeBackbone

    folder = tmp_path / "beyond"
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    folder.mkdir()
    for line in lines:
        source = data.parent / line["image"]
        (folder / line["image"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / line["image"]).write_bytes(source.read_bytes())
    trained = [line for line in lines if line.get("split") != "test"]
    trained[0]["question"], trained[1]["answer"] = "what beyond is it?", "red beyond"
    trained[2]["question"] = "what <image> is </s> it?"  # plain characters to this tokenizer
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = site.read_text().replace(str(data), str(folder / "questions.jsonl"))
    site.write_text(text)
    original = GenerativeBackbone.__init__

    def with_a_larger_vocabulary(self, model, tokenizer, *rest, **more):
        tokenizer.add_tokens(["beyond"])
        original(self, model, tokenizer, *rest, **more)

    monkeypatch.setattr(GenerativeBackbone, "__init__", with_a_larger_vocabulary)
    (tmp_path / "plan.json").write_text(experiment_for(96).to_json())
    for more in ((), ("--plan", tmp_path / "plan.json")):
        assert codes(checked(command, site, *more)["warnings"]).count("SPECIAL_TOKEN") == 2
    built = build_agent(load_site(site))
    told = [problem for problem in built.data.problems if problem.code == "SPECIAL_TOKEN"]
    assert len(told) == 2
    assert all("beyond" in problem.message for problem in told)
    assert len(built.data.train) == 22
    experiment = experiment_for(built.backbone.width, sample_rate=1.0, nominal_site_size=22)
    assert built.agent.train(TrainRequest(experiment, 1, zeros(experiment))).update.any()
    built.lock.release()


def test_a_site_of_nothing_but_such_lines_does_not_start():
    from types import SimpleNamespace

    from dpfpl_client.agent.build import without_unusable_words
    from dpfpl_client.data import ImageRecord, SiteData
    from dpfpl_common.errors import DataError, ModelError

    def refuses(*texts):
        raise ModelError(code="SPECIAL_TOKEN", message="It spells '</s>'.", advice="Write otherwise.")

    record = ImageRecord("1.png", "red", "0" * 64, "train", None, question="what is </s>?")
    with pytest.raises(DataError) as caught:
        without_unusable_words(SiteData((record,), (), (), (), ()), SimpleNamespace(check_words=refuses))
    assert caught.value.code == "SPECIAL_TOKEN"
    assert "1.png" in caught.value.message
