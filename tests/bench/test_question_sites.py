"""Sites that have questions answered: what --data means, whole runs, floors, and the embedded generative model."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from dpfpl_bench.demo import scenarios as demo_vlm
from dpfpl_bench.demo.demonstration import DemoRequest, edit_kit, provisioned
from dpfpl_bench.demo.drawn_questions import (
    HABITS,
    PLAIN,
    QUESTIONS,
    SHARED_HABITS,
    SITE_HABITS,
    SIZE,
    Facts,
    Habit,
    answer_to,
    caption_of,
    draw_picture,
    drawn_houses,
    drawn_questions,
    drawn_sites,
    house_style,
    vocabulary,
    with_neighbours,
    write_questions,
)
from dpfpl_bench.demo.scenarios import VLM_SITES, vlm_experiment
from dpfpl_bench.simulation.baselines import local_only
from dpfpl_bench.simulation.in_process import Simulation, prepare_sites
from dpfpl_bench.simulation.questions import question_sites
from dpfpl_client.agent.build import check_public
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.policy_file import load_policy
from dpfpl_client.data import DataSettings, load_site_data
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import ConfigError, DataError
from dpfpl_common.experiment import OptimizerSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events, resolve_noise
from dpfpl_server.sites.provision import ProvisionRequest, provision
from research.embedded_models.vlm_evaluate import abilities
from research.tables.models import BEGIN, END, with_table
from research.tables.questions import all_cells, write_page

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return load_backbone("embedded-vlm")


FASTER = ("--set", "optimizer.personal_learning_rate=0.05")


def test_every_word_of_questions_and_answers_has_a_token(model):
    unknown = model.tokenizer.unk_token_id
    for text in (*vocabulary(), *(wording for wordings in QUESTIONS.values() for wording in wordings)):
        assert unknown not in model.tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_answers_differ_by_habit_where_houses_differ():
    three = Facts("red", "circle", 3)
    assert [answer_to("count", three, habit) for habit in HABITS[:2]] == ["3", "three"]
    assert answer_to("shape", three, Habit("words", "german")) == "kreis"
    assert answer_to("digit", Facts("red", digit=7), Habit("figures", "french")) == "7"
    assert PLAIN not in SITE_HABITS


def test_pictures_are_drawn_from_the_seed_alone():
    facts = Facts("blue", "star", 4)
    one, two = (draw_picture(facts, np.random.default_rng(3)) for _ in range(2))
    assert one.shape == (SIZE, SIZE, 3)
    assert np.array_equal(one, two)
    first, again = (drawn_questions(PLAIN, "test", 5, (1, 2)) for _ in range(2))
    assert [record.digest for record in first] == [record.digest for record in again]


def test_what_is_written_is_what_is_read_back(tmp_path):
    (site,) = drawn_sites(1, 12, 5, seed=3)
    read = load_site_data(DataSettings("questions", str(write_questions(tmp_path, site))), ())

    def content(records):
        return sorted((record.digest, record.question, record.label) for record in records)

    assert read.problems == ()
    assert content(read.train) == content(site.train)
    assert content(read.test) == content(site.test)


def test_neighbours_are_the_other_sites_tests():
    sites = with_neighbours(drawn_sites(3, 4, 2, seed=0))
    assert [len(site.neighbour_test) for site in sites] == [4, 4, 4]
    assert not {record.digest for record in sites[0].test} & {record.digest for record in sites[0].neighbour_test}


def test_a_file_is_dealt_out_by_picture_and_folders_are_sites(tmp_path):
    (site,) = drawn_sites(1, 30, 10, seed=1)
    write_questions(tmp_path / "north", site)
    write_questions(tmp_path / "south", drawn_sites(2, 8, 4, seed=2)[1])
    names, sites = question_sites(str(tmp_path), 7, 0)
    assert names == ["north", "south"]
    assert [len(each.train) for each in sites] == [30, 8]
    names, dealt = question_sites(str(tmp_path / "north" / "questions.jsonl"), 3, 0)
    assert names == ["site-1", "site-2", "site-3"]
    assert sum(len(each.train) for each in dealt) == 30
    digests = [{record.digest for record in (*each.train, *each.test)} for each in dealt]
    assert not digests[0] & digests[1]
    for nothing in (tmp_path / "none.csv", tmp_path / "north" / "pictures"):
        with pytest.raises(ConfigError, match="NO_DATA"):
            question_sites(str(nothing), 2, 0)
    with pytest.raises(DataError, match="No such file") as caught:
        question_sites(str(tmp_path / "none.jsonl"), 2, 0)
    assert caught.value.code == "DATA_UNREADABLE"
    assert caught.value.advice.startswith("Check the path")
    with pytest.raises(ConfigError, match="IMPOSSIBLE_VALUE"):
        question_sites(str(tmp_path / "north" / "questions.jsonl"), 60, 0)


def test_the_embedded_model_knows_its_world_and_answers_plainly_without_a_prompt(model):
    """The room that prompts have: told how to word its answers it is right far more often than with plain words."""
    found = {ability.habit: ability for ability in abilities("embedded-vlm", tests=60)}
    assert found[PLAIN].plain_text > 0.8
    for habit in SITE_HABITS[:3]:
        assert found[habit].told > 0.75
        assert found[habit].plain_text < found[habit].told - 0.2


@pytest.mark.slow
def test_run_with_questions_reports_every_site_and_its_floors(bench, tmp_path):
    for name, site in zip(("north", "south"), drawn_sites(2, 40, 20, seed=5), strict=True):
        write_questions(tmp_path / name, site)
    quick = ("--rounds", 2, "--set", "rounds.local_steps=1", *FASTER, "--quiet")
    code, _, err = bench("run", "--task", "vqa", "--data", tmp_path, "--out", tmp_path / "result.json", *quick)
    assert code == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert [site["name"] for site in result["sites"]] == ["north", "south"]
    assert all(0 <= site["local"] <= 1 for site in result["sites"])
    assert set(result["floors"]) >= {"zero_shot", "global_only", "local_only", "centralised"}
    assert result["floors"]["zero_shot"]["local"] is not None
    assert result["config"]["task"]["kind"] == "vqa"
    assert result["config"]["classes"] == []
    assert {entry["adversary"] for entry in result["privacy"]["epsilons"]} == {
        "prompt_recipient", "other_site", "operator"
    }  # fmt: skip


@pytest.mark.slow
def test_run_with_captions_measures_the_overlap_of_words(bench, tmp_path):
    for name, site in zip(("north", "south"), drawn_sites(2, 30, 12, seed=5, captions=True), strict=True):
        write_questions(tmp_path / name, site)
    quick = ("--rounds", 1, "--set", "rounds.local_steps=2", *FASTER, "--floors", "none", "--quiet")
    code, _, err = bench("run", "--task", "caption", "--data", tmp_path, "--out", tmp_path / "result.json", *quick)
    assert code == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["task"] == {"kind": "caption", "question": "", "max_answer_tokens": 32}
    overlaps = [site[key] for site in result["sites"] for key in ("before", "local")]
    assert all(0 <= overlap <= 1 for overlap in overlaps)
    assert any(0 < overlap < 1 for overlap in overlaps)


@pytest.mark.slow
def test_run_says_which_answers_can_never_be_right(bench, tmp_path):
    file = write_questions(tmp_path / "north", drawn_sites(1, 12, 6, seed=5)[0])
    lines = [json.loads(line) | {"answer": "red blue " * 4} for line in file.read_text().splitlines()]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    quick = ("--sites", 1, "--rounds", 1, "--set", "rounds.local_steps=1", "--floors", "none")
    for limit, warned in ((7, True), (8, False)):
        code, _, err = bench("run", "--task", "vqa", "--data", file, "--set", f"task.max_answer_tokens={limit}", *quick)
        assert code == 0, err
        assert ("18 of 18 answers can never be right" in err) == warned


def test_a_caption_says_all_of_a_picture_in_the_houses_words():
    assert caption_of(Facts("red", "circle", 3), Habit("words", "german")) == "drei rot kreis"
    assert caption_of(Facts("blue", digit=7), PLAIN) == "blue 7"


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--set", "engine=flower"), "IMPOSSIBLE_VALUE"),
        (("--model", "embedded"), "NO_ANSWERS"),
        (("--mechanism", "one_shot"), "NO_CLASS_FEATURES"),
    ],
)
def test_what_does_not_go_together_is_refused(bench, tmp_path, flags, code):
    write_questions(tmp_path / "north", drawn_sites(1, 6, 3, seed=5)[0])
    exit_code, _, err = bench(
        "run", "--task", "vqa", "--data", tmp_path, "--rounds", 1, "--floors", "none", "--quiet", *flags
    )
    assert (exit_code, err.split()[0]) == (2, code)


@pytest.mark.slow
def test_three_sites_learn_their_own_words_at_epsilon_8(model):
    """Where nothing is shared: personalised answers beat the model without a prompt."""
    sites = prepare_sites(drawn_sites(3, 150, 40, seed=0), (), FeatureCache(None, model), VLM_SITES[:3])
    shared = vlm_experiment(model, sites, None)
    experiment = resolve_noise(
        dataclasses.replace(
            shared,
            prompt=PromptSettings(num_context=4, rank=2, init_text=shared.prompt.init_text),
            optimizer=OptimizerSettings(global_learning_rate=0.02, personal_learning_rate=0.05),
            privacy=PrivacySettings(mechanism="per_step", target_epsilon=8.0, nominal_site_size=150),
            rounds=RoundSettings(number=4, local_steps=2),
        )
    )
    outcome = Simulation(model, sites, 0).run(experiment)
    assert experiment.privacy.noise_multiplier > 0.5
    for name, final in outcome.final.items():
        assert final["personal_local"] > final["zero_shot_local"] + 0.15, name


def test_houses_share_all_wordings_but_one_and_do_not_change_with_their_number():
    shared = {wording: SHARED_HABITS[kind] for kind, wordings in QUESTIONS.items() for wording in wordings}
    own = []
    for number in range(len(VLM_SITES)):
        different = [(wording, habit) for wording, habit in house_style(number).items() if habit != shared[wording]]
        assert len(different) == 1
        own += different
    assert len(set(own)) >= 8
    few, many = drawn_houses(2, 6, 3, seed=4), drawn_houses(3, 6, 3, seed=4)
    assert [[(r.digest, r.question, r.label) for r in site.train] for site in few] == [
        [(r.digest, r.question, r.label) for r in site.train] for site in many[:2]
    ]
    names, sites = question_sites("shared-style", 2, 4)
    assert names == ["site-1", "site-2"]
    assert [(len(site.train), len(site.test), len(site.neighbour_test)) for site in sites] == [(50, 40, 0)] * 2


@pytest.mark.slow
def test_sites_that_share_a_style_are_far_ahead_of_each_site_alone_under_the_same_promise(model):
    """The demo's experiment, in one process, epsilon 2; six of the sites, and two of them alone."""
    sites = prepare_sites(drawn_houses(6, 50, 40, seed=0), (), FeatureCache(None, model), VLM_SITES[:6])
    experiment = vlm_experiment(model, sites, 2.0)
    outcome = Simulation(model, sites, 0).run(experiment)
    together = np.mean([final["personal_local"] for final in outcome.final.values()])
    alone = local_only(model, sites[::3], experiment, 0)["local"]
    assert together > alone + 0.15
    assert together > np.mean([final["zero_shot_local"] for final in outcome.final.values()]) + 0.4
    recipient = [event for event in planned_events(experiment) if event.adversary == "prompt_recipient"]
    assert 1.9 < epsilon(recipient, experiment.privacy.target_delta) <= 2.0


def test_the_page_of_questions_is_written_from_what_was_measured(tmp_path):
    found = {
        cell: {"answers": 0.75 if cell.who == "federated" else 0.45, "worst_site": 0.4}
        | ({"unprompted": 0.03, "epsilon_operator": 8.0} if cell.who == "federated" else {})
        for cell in all_cells()
    }
    text = write_page(found, tmp_path).read_text()
    assert "| 2 | 75.0 ± 0.0 | 40.0 | 45.0 ± 0.0 | +30.0 | 3.0 | 8 | 3 |" in text
    assert "| 40 | 75.0 ± 0.0 |" in text
    assert list((tmp_path / "images").glob("*.svg"))


def test_the_table_of_families_replaces_only_itself():
    fact = {
        "family": "llava", "model": "Llava", "parameters": 2_000_000, "row": 64, "trains": True, "exports": "context",
        "exact": "once", "first_step_ms": 48.0, "step_ms": 12.4, "step_mb": 3.2,
    }  # fmt: skip
    measured = {"device": "a processor", "versions": {"torch": "1"}, "families": [fact]}
    measured |= {"sizes": {"width": 256, "layers": 6, "image": 112}, "batch": 16}
    text = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", measured)
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| `llava` | `Llava` | 2.0 M | 64 | yes | context | once | 48 | 12 | 3 |" in text
    assert "old" not in text
    with pytest.raises(ValueError, match="no <!--"):
        with_table("a page without marks", measured)


def test_a_second_demo_elsewhere_is_not_taken_for_a_second_ledger_of_the_same_pictures(tmp_path):
    """Every demo draws the same pictures; what the machine remembers of one must not stop the next."""
    (tmp_path / "questions.jsonl").touch()
    for name in ("first", "second"):
        site = tmp_path / name
        provision(ProvisionRequest(site / "server", site / "kits", VLM_SITES[:1], port=1234))
        kit = site / "kits" / VLM_SITES[0]
        edit_kit(kit, str(tmp_path / "questions.jsonl"), demo_vlm._with_the_model, "demo-vlm", 8.0)
        settings = load_site(kit / "site.toml")
        assert settings.model == demo_vlm.MODEL
        assert settings.registry_folder == kit / "registry"


def test_the_demos_kits_start(tmp_path):
    """Exact accuracies leave data that are declared public only; the demo that is run whole is a long test."""
    work, _, _ = provisioned(demo_vlm.vlm_demo(2), DemoRequest(tmp_path / "out", rounds=1, epsilon=2.0))
    for name in VLM_SITES[:2]:
        settings = load_site(work / "kits" / name / "site.toml")
        check_public(load_policy(settings.path(settings.policy)), settings.data)
