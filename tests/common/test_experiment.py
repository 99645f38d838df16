"""The experiment: every impossible value named, and one identity for one experiment."""

import dataclasses
import json
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import (
    METHODS,
    AggregationSettings,
    Experiment,
    ModelSettings,
    OptimizerSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
    Trust,
    load_experiment,
    parse_experiment,
)
from dpfpl_common.privacy_plan import resolve_noise

BASE = Experiment(
    name="pilot",
    classes=("cat", "dog"),
    sites=("north", "south", "west"),
    model=ModelSettings(width=8),
    privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.5),
)


def changed(key, value):
    """BASE as a table, with one dotted key set."""
    table = json.loads(BASE.to_json())
    *path, last = key.split(".")
    inner = table
    for part in path:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return table


IMPOSSIBLE = [
    ("name", ""),
    ("name", "Über"),
    ("name", "a" * 64),
    ("name", "../x"),
    ("name", "x\n"),
    ("classes", []),
    ("classes", ["cat"]),
    ("classes", ["cat", "cat"]),
    ("classes", ["cat", " "]),
    ("classes", ["cat", "a\nb"]),
    ("classes", ["cat", "x" * 201]),
    ("sites", []),
    ("sites", ["a", "a"]),
    ("sites", ["North"]),
    ("sites", ["a/b"]),
    ("model.width", 0),
    ("model.width", 10**400),
    ("prompt.method", "magic"),
    ("prompt.num_context", 0),
    ("prompt.rank", 0),
    ("prompt.rank", 5),
    ("optimizer.name", "lion"),
    ("optimizer.global_learning_rate", -0.1),
    ("optimizer.personal_learning_rate", 1e7),
    ("privacy.mechanism", "magic"),
    ("privacy.trust", "nobody"),
    ("privacy.noise_multiplier", -1.0),
    ("privacy.noise_multiplier", None),
    ("privacy.target_epsilon", 0.0),
    ("privacy.target_epsilon", 1e9),
    ("privacy.target_delta", 0.0),
    ("privacy.target_delta", 0.6),
    ("privacy.clipping_norm", 0.0),
    ("privacy.clipping_norm", -1.0),
    ("privacy.factor_clipping_norm", -1.0),
    ("privacy.factor_clipping_norm", 1e-12),
    ("privacy.sample_rate", 0.0),
    ("privacy.sample_rate", 1.001),
    ("privacy.nominal_site_size", 0),
    ("privacy.tolerated_dropouts", -1),
    ("privacy.tolerated_dropouts", 3),
    ("privacy.tolerated_colluders", -1),
    ("rounds.number", 0),
    ("rounds.local_steps", 0),
    ("rounds.min_sites", 2),
    ("rounds.min_sites", 4),
    ("rounds.min_sites", -1),
    ("rounds.deadline", 0.0),
    ("rounds.evaluate_every", 0),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE, ids=lambda v: repr(v)[:24])
def test_an_impossible_value_names_its_key(key, value):
    with pytest.raises(ConfigError) as caught:
        parse_experiment(json.dumps(changed(key, value)))
    assert caught.value.code == "IMPOSSIBLE_VALUE"
    if value is not None:
        *table, name = key.split(".")
        assert f"experiment {f'[{table[0]}] ' if table else ''}{name}" in str(caught.value)
        assert repr(value)[:20].strip("[]") in str(caught.value)


def leaves(cls, prefix=""):
    for f in dataclasses.fields(cls):
        hint = typing.get_type_hints(cls)[f.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name


OTHER = {
    "name": "other",
    "classes": ["dog", "cat"],
    "sites": ["south", "north", "west"],
    "model.width": 9,
    "model.id": "hub/x",
    "model.fingerprint": "ab",
    "prompt.method": "promptfl",
    "prompt.num_context": 5,
    "prompt.rank": 2,
    "prompt.init_text": "",
    "prompt.personal_strength": 0.5,
    "prompt.retention": 0.5,
    "prompt.evidence": False,
    "prompt.usual_mix": 0.25,
    "optimizer.name": "sgd",
    "optimizer.global_learning_rate": 0.5,
    "optimizer.personal_learning_rate": 0.5,
    "privacy.unit": "site",
    "privacy.trust": "local",
    "privacy.clipping": "separate",
    "privacy.accounting": "paper",
    "privacy.target_epsilon": 3.0,
    "privacy.target_delta": 1e-6,
    "privacy.noise_multiplier": 2.5,
    "privacy.clipping_norm": 0.2,
    "privacy.factor_clipping_norm": 0.2,
    "privacy.sample_rate": 0.25,
    "privacy.nominal_site_size": 301,
    "privacy.tolerated_dropouts": 1,
    "privacy.tolerated_colluders": 2,
    "rounds.number": 11,
    "rounds.local_steps": 5,
    "rounds.min_sites": 3,
    "rounds.deadline": 301.0,
    "rounds.evaluate_every": 2,
    "aggregation.trim": 2,
    "aggregation.largest_site": 4.0,
    "gradients.precision": "bfloat16",
    "gradients.classes": 2,
}


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_robust_rules_need_local_trust_and_enough_sites(rule):
    names = ("east", "north", "south", "west", "middle") if rule == "krum" else ("east", "north", "south")
    three = dataclasses.replace(BASE, sites=names)
    settings = AggregationSettings(rule=rule)
    for trust in ("distributed", "central"):
        with pytest.raises(ConfigError, match="no function of the sum") as caught:
            dataclasses.replace(three, aggregation=settings, privacy=dataclasses.replace(BASE.privacy, trust=trust))
        assert caught.value.code == "NO_SOUND_ANALYSIS"
    local = dataclasses.replace(BASE.privacy, trust="local")
    experiment = dataclasses.replace(three, aggregation=settings, privacy=local)
    assert experiment.digest() != dataclasses.replace(three, privacy=local).digest()
    assert parse_experiment(experiment.to_json()) == experiment
    if rule != "median":  # with the quorum of one site less there are too few
        with pytest.raises(ConfigError, match=r"\[aggregation\] trim|aggregation\.trim"):
            dataclasses.replace(experiment, privacy=dataclasses.replace(local, tolerated_dropouts=1))


def test_an_experiment_of_an_earlier_release_keeps_its_digest():
    """Sites bind a name to a digest, so a later release's settings must not change it."""
    later = ("aggregation", "gradients", "task", "projection")
    for name in (*later, "personal_strength", "absent_weight", "retention", "contrast"):
        assert name not in BASE.to_json()
    stronger = dataclasses.replace(BASE, prompt=dataclasses.replace(BASE.prompt, personal_strength=1.5))
    assert parse_experiment(stronger.to_json()) == stronger
    assert stronger.digest() != BASE.digest()
    assert parse_experiment(BASE.to_json()).digest() == BASE.digest()


@pytest.mark.parametrize("kind", ["vqa", "caption"])
def test_answers_in_words_go_without_a_list_of_classes(kind):
    in_words = dataclasses.replace(BASE, classes=(), task=TaskSettings(kind=kind))
    assert in_words.task.in_words
    assert not BASE.task.in_words
    assert parse_experiment(in_words.to_json()) == in_words
    assert in_words.digest() != BASE.digest()
    with pytest.raises(ConfigError, match="empty list"):
        dataclasses.replace(BASE, task=TaskSettings(kind=kind))


def test_a_question_may_join_letters():
    task = TaskSettings(kind="caption", question="\u0645\u06cc\u200c\u0634\u0648\u062f\u061f")
    assert dataclasses.replace(BASE, classes=(), task=task).task == task


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "describe"), ("question", "a\nb"), ("question", "a" * 1001), ("max_answer_tokens", 0)]
)
def test_an_impossible_task_is_named(key, value):
    with pytest.raises(ConfigError, match=f"{key} is "):
        TaskSettings(**{key: value})


def test_every_field_is_reachable_and_part_of_the_identity():
    # The other mechanism, a projection and another rule go with one trust mode only, sampled sites with one unit, a
    # question with one task; they have tests of their own.
    apart = {
        "prompt.absent_weight",
        "prompt.contrast",
        "privacy.mechanism",
        "privacy.projection",
        "privacy.site_sample_rate",
        "aggregation.rule",
        "task.kind",
        "task.question",
        "task.max_answer_tokens",
    }
    assert set(leaves(Experiment)) - set(OTHER) == apart
    digests = {BASE.digest()} | {parse_experiment(json.dumps(changed(k, v))).digest() for k, v in OTHER.items()}
    assert len(digests) == len(OTHER) + 1


@pytest.mark.parametrize("privacy", [1, "none", [1], None])
def test_a_part_of_the_wrong_kind_is_named(privacy):
    with pytest.raises(ConfigError, match="privacy"):
        parse_experiment(json.dumps(changed("privacy", privacy)))


@pytest.mark.parametrize(
    ("privacy", "reason"),
    [
        ({"mechanism": "one_shot", "trust": "distributed"}, "whole noise already"),
        ({"mechanism": "one_shot", "trust": "central"}, "whole noise already"),
        ({"mechanism": "one_shot", "trust": "local", "accounting": "paper"}, "one_shot adds noise once"),
        ({"mechanism": "one_shot", "trust": "local", "clipping": "separate"}, "several blocks"),
        ({"trust": "local", "clipping": "separate"}, "several blocks"),
        ({"projection": "text"}, "per_step does not release"),
        ({"projection": "text", "unit": "site"}, "per_step does not release"),
        ({"trust": "central", "site_sample_rate": 0.5}, "unit site only"),
        ({"unit": "site", "mechanism": "one_shot", "trust": "local"}, "what one image adds"),
        ({"unit": "site", "trust": "local"}, "noised once a round"),
        ({"unit": "site", "clipping": "separate"}, "one vector is clipped"),
        ({"unit": "site", "accounting": "paper"}, "single examples"),
        ({"unit": "site", "site_sample_rate": 0.5}, "random number of noise shares"),
    ],
)
def test_what_has_no_sound_analysis_is_refused_with_the_reason(privacy, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        dataclasses.replace(BASE, privacy=dataclasses.replace(BASE.privacy, **privacy))
    assert caught.value.code == "NO_SOUND_ANALYSIS"


ONE_SHOT = {"mechanism": "one_shot", "trust": "local"}


def of(privacy=None, **prompt):
    """BASE with other settings of privacy and prompt."""
    return dataclasses.replace(
        BASE,
        privacy=dataclasses.replace(BASE.privacy, **(privacy or {})),
        prompt=dataclasses.replace(BASE.prompt, **prompt),
    )


def test_what_goes_with_one_mechanism_only_is_part_of_the_identity_too():
    found = [BASE, of(ONE_SHOT), of({**ONE_SHOT, "projection": "text"}), of(ONE_SHOT, absent_weight=0.5)]
    found += [of(method="fedpgp"), of(method="fedpgp", contrast=1.0)]
    assert len({experiment.digest() for experiment in found}) == len(found)
    assert [parse_experiment(experiment.to_json()) for experiment in found] == found


@pytest.mark.parametrize(
    ("privacy", "prompt", "words"),
    [
        ({}, {"method": "fedotp", "contrast": 1.0}, r"contrast.*fedpgp"),
        (ONE_SHOT, {"retention": 1.0}, r"retention.*per_step"),
        ({}, {"absent_weight": 0.5}, r"absent_weight.*only one_shot"),
        ({**ONE_SHOT, "projection": "images"}, {}, "'none' or 'text'"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(privacy, prompt, words):
    with pytest.raises(ConfigError, match=words):
        of(privacy, **prompt)


NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
POSITIVE = st.floats(1e-6, 1e6)


@st.composite
def experiments(draw):
    site = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
    sites = tuple(draw(st.lists(site, min_size=1, max_size=5, unique=True)))
    classes = draw(st.lists(st.text(max_size=20), min_size=2, max_size=5, unique=True))
    classes = [f"c{i}{name}" for i, name in enumerate(classes) if name.isprintable()] + ["y", "z"]
    dropouts = draw(st.integers(0, len(sites) - 1))
    width, num_context = draw(st.integers(1, 64)), draw(st.integers(1, 32))
    return Experiment(
        name=draw(NAMES),
        classes=tuple(classes),
        sites=sites,
        model=ModelSettings(width=width, id=draw(st.text()), fingerprint=draw(st.text())),
        prompt=PromptSettings(
            draw(st.sampled_from(METHODS)), num_context, draw(st.integers(1, min(width, num_context))), draw(st.text())
        ),
        optimizer=OptimizerSettings(draw(st.sampled_from(["adam", "sgd"])), draw(POSITIVE), draw(POSITIVE)),
        privacy=PrivacySettings(
            mechanism="per_step",
            trust=draw(st.sampled_from([trust for trust in typing.get_args(Trust) if trust != "secure"])),
            target_epsilon=draw(st.none() | st.floats(1e-3, 1e3) | st.integers(1, 1000)),
            target_delta=draw(st.floats(1e-15, 0.5)),
            noise_multiplier=draw(st.just(0.0) | st.floats(0.1, 1e3) | st.integers(0, 100)),
            clipping_norm=draw(POSITIVE | st.integers(1, 9)),
            factor_clipping_norm=draw(st.just(0) | POSITIVE),
            sample_rate=draw(st.floats(1e-4, 1.0)),
            nominal_site_size=draw(st.integers(1, 10**9)),
            tolerated_dropouts=dropouts,
            tolerated_colluders=draw(st.integers(0, 10)),
        ),
        rounds=RoundSettings(
            draw(st.integers(1, 100)),
            draw(st.integers(1, 100)),
            draw(st.sampled_from([0, len(sites)])),
            draw(st.integers(1, 99)),
        ),
    )


@given(experiments())
@settings(max_examples=150, deadline=None)
def test_canonical_json_round_trip(experiment):
    text = experiment.to_json()
    again = parse_experiment(text)
    assert again == experiment
    assert again.to_json() == text
    assert again.digest() == experiment.digest()
    assert text.isascii()


def test_whole_numbers_for_floats_are_the_same_experiment():
    def build(one):
        return dataclasses.replace(
            BASE,
            privacy=PrivacySettings(
                mechanism="per_step", noise_multiplier=one, clipping_norm=one, target_epsilon=one, sample_rate=one
            ),
            rounds=RoundSettings(deadline=one),
            optimizer=OptimizerSettings(global_learning_rate=one),
        )

    assert build(1).digest() == build(1.0).digest()
    assert build(1).to_json() == build(1.0).to_json()
    assert parse_experiment(json.dumps(changed("rounds.deadline", 300))).digest() == BASE.digest()


@pytest.mark.parametrize("key", ["privacy.clipping_norm", "privacy.noise_multiplier", "rounds.deadline"])
def test_a_whole_number_too_large_for_a_float_is_a_config_error(key):
    with pytest.raises(ConfigError, match=key.split(".")[1]):
        parse_experiment(json.dumps(changed(key, 10**400)))
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(BASE, **{section: dataclasses.replace(getattr(BASE, section), **{name: 10**400})})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *((text, "BAD_EXPERIMENT") for text in ("", "{", "[1", "9" * 5000, "[" * 100_000, '{"name": "a" "b"}')),
        *((text, "WRONG_TYPE") for text in ("[]", "null", "1", '"x"')),
        ("{}", "MISSING_KEY"),
        ('{"name": NaN}', "WRONG_TYPE"),
    ],
    ids=lambda text: text[:14],
)
def test_what_is_no_experiment_is_refused(text, code):
    with pytest.raises(ConfigError) as caught:
        parse_experiment(text)
    assert caught.value.code == code


def test_a_file_without_classes_will_do_where_answers_are_words(tmp_path):
    path = tmp_path / "asked.toml"
    text = 'sites = ["a", "b"]\n[model]\nwidth = 8\n[privacy]\ntarget_epsilon = 8\n[task]\nkind = "vqa"\n'
    path.write_text(text)
    experiment = load_experiment(path)
    assert (experiment.name, experiment.classes) == ("asked", ())
    path.write_text(text.replace("vqa", "classify"))
    with pytest.raises(ConfigError, match="lacks the key 'classes'"):
        load_experiment(path)


def test_toml_and_derived_values(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(
        'name = "pilot"\nclasses = ["cat", "dog"]\nsites = ["a", "b", "c"]\n[model]\nwidth = 8\n'
        "[privacy]\ntarget_epsilon = 8\ntolerated_dropouts = 1\nfactor_clipping_norm = 0.5\n"
    )
    experiment = load_experiment(path)
    assert experiment.context_shape == (4, 8)
    assert experiment.min_sites == 2
    assert experiment.total_steps == 40
    assert experiment.is_private
    assert experiment.privacy.factor_norm == 0.5
    assert BASE.privacy.factor_norm == BASE.privacy.clipping_norm
    assert not BASE.with_noise_multiplier(0.0).is_private
    assert BASE.with_noise_multiplier(2.0).privacy.noise_multiplier == 2.0


def test_the_noise_level_is_resolved_once():
    asked = dataclasses.replace(BASE, privacy=PrivacySettings(mechanism="per_step", target_epsilon=8.0))
    resolved = resolve_noise(asked)
    assert resolved.privacy.noise_multiplier == pytest.approx(2.0645, rel=2e-3)
    assert resolve_noise(resolved) is resolved
    assert resolve_noise(BASE) is BASE
