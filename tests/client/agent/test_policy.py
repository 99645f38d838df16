"""The policy: no valid file, nothing leaves; each rule refuses on its own."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpfpl_client.agent.build import build_agent
from dpfpl_client.agent.policy_file import load_policy
from dpfpl_client.data import DataSettings
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import ConfigError, RefusedError
from dpfpl_common.policy import Policy, permit
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events

pytestmark = pytest.mark.privacy

GOOD = """
experiments = ["pilot"]
max_epsilon_per_experiment = 8.0
max_epsilon_lifetime = 16
"""
NEEDED = 'experiments = ["*"]\nmax_epsilon_per_experiment = {}\nmax_epsilon_lifetime = 16\n'

BAD_CONTENT = {
    "empty": ("", "MISSING_KEY"),
    "only_a_comment": ("# experiments\n", "MISSING_KEY"),
    "no_lifetime_cap": ('experiments = ["*"]\nmax_epsilon_per_experiment = 1.0\n', "MISSING_KEY"),
    "bad_toml": ('experiments = ["*"\n', "BAD_TOML"),
    "not_text": (b"\xff\xfe\x00", "BAD_TOML"),
    "duplicate_key": (GOOD + "max_epsilon_lifetime = 99\n", "BAD_TOML"),
    "unknown_key": (GOOD + "max_epsilon = 99\n", "UNKNOWN_KEY"),
    "misspelt_key": (GOOD + "min_noise_multiplyer = 1\n", "UNKNOWN_KEY"),
    "string_for_number": (NEEDED.format('"8.0"'), "WRONG_TYPE"),
    "boolean_for_number": (NEEDED.format("true"), "WRONG_TYPE"),
    "string_for_list": (GOOD.replace('["pilot"]', '"*"'), "WRONG_TYPE"),
    "fraction_for_count": (GOOD + "max_rounds = 1.5\n", "WRONG_TYPE"),
    "infinite_epsilon": (NEEDED.format("inf"), "WRONG_TYPE"),
    "epsilon_not_a_number": (NEEDED.format("nan"), "WRONG_TYPE"),
    "huge_epsilon": (NEEDED.format("1" + "0" * 400), "WRONG_TYPE"),
    "zero_epsilon": (NEEDED.format("0.0"), "IMPOSSIBLE_VALUE"),
    "negative_epsilon": (NEEDED.format("-1"), "IMPOSSIBLE_VALUE"),
    "zero_noise": (GOOD + "min_noise_multiplier = 0.0\n", "IMPOSSIBLE_VALUE"),
    "zero_delta": (GOOD + "delta = 0.0\n", "IMPOSSIBLE_VALUE"),
    "large_delta": (GOOD + "delta = 0.5\n", "IMPOSSIBLE_VALUE"),
    "zero_clipping_norm": (GOOD + "max_clipping_norm = 0\n", "IMPOSSIBLE_VALUE"),
    "zero_rounds": (GOOD + "max_rounds = 0\n", "IMPOSSIBLE_VALUE"),
    "unknown_trust": (GOOD + 'trust = ["everyone"]\n', "IMPOSSIBLE_VALUE"),
    "unknown_unit": (GOOD + 'units = ["person"]\n', "IMPOSSIBLE_VALUE"),
    "unknown_metrics": (GOOD + 'metrics = "all"\n', "IMPOSSIBLE_VALUE"),
}


def world_writable(path):
    path.write_text(GOOD)
    path.chmod(0o646)


def link(path):
    (path.parent / "real.toml").write_text(GOOD)
    path.symlink_to("real.toml")


BAD_FILE = {
    "missing": (lambda path: None, "NO_POLICY"),
    "folder": (lambda path: path.mkdir(), "POLICY_NOT_PROTECTED"),
    "world_writable": (world_writable, "POLICY_NOT_PROTECTED"),
    "link": (link, "POLICY_NOT_PROTECTED"),
    "dangling_link": (lambda path: path.symlink_to("nowhere"), "POLICY_NOT_PROTECTED"),
}


def write(content):
    def make(path):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o640)

    return make


CASES = {**{name: (write(text), code) for name, (text, code) in BAD_CONTENT.items()}, **BAD_FILE}


@pytest.mark.parametrize("case", CASES)
def test_O1_P11_a_bad_policy_is_refused_and_the_agent_does_not_start(tmp_path, case):
    make, code = CASES[case]
    make(tmp_path / "policy.toml")
    with pytest.raises(ConfigError) as error:
        load_policy(tmp_path / "policy.toml")
    assert (error.value.code, bool(error.value.advice)) == (code, True)
    site = SiteSettings(name="a", data=DataSettings(source="shapes"), folder=str(tmp_path))
    with pytest.raises(ConfigError) as error:
        build_agent(site)
    assert error.value.code == code
    assert not (tmp_path / "state").exists()


def test_absent_rules_are_strict(tmp_path):
    write(GOOD)(tmp_path / "policy.toml")
    policy = load_policy(tmp_path / "policy.toml")
    assert policy.experiments == ("pilot",)
    assert policy.max_epsilon_lifetime == 16.0
    assert "central" not in policy.trust
    assert policy.units == ("example",)
    assert (policy.metrics, policy.min_noise_multiplier) == ("noised", 0.3)


@pytest.fixture
def strict(experiment):
    """Permits the experiment, and nothing beyond it."""
    privacy = experiment.privacy
    return Policy(
        experiments=(experiment.name,),
        max_epsilon_per_experiment=epsilon(planned_events(experiment)[:1], 1e-5),
        max_epsilon_lifetime=1.0,
        delta=privacy.target_delta,
        trust=(privacy.trust,),
        mechanisms=(privacy.mechanism,),
        methods=(experiment.prompt.method,),
        min_noise_multiplier=privacy.noise_multiplier,
        max_clipping_norm=privacy.clipping_norm,
        max_rounds=experiment.rounds.number,
    )


def test_the_very_limits_are_permitted(strict, experiment):
    permit(strict, experiment)


@pytest.mark.parametrize(
    ("code", "rule", "value"),
    [
        ("EXPERIMENT_NOT_APPROVED", "experiments", ("pilot2", "pil", "pilot@0123456789ab")),
        ("EXPERIMENT_NOT_APPROVED", "experiments", ()),
        ("TRUST_NOT_ALLOWED", "trust", ("local",)),
        ("UNIT_NOT_ALLOWED", "units", ("site",)),
        ("MECHANISM_NOT_ALLOWED", "mechanisms", ()),
        ("METHOD_NOT_ALLOWED", "methods", ("promptfl",)),
        ("TOO_MANY_ROUNDS", "max_rounds", 2),
        ("CLIPPING_NORM_TOO_LARGE", "max_clipping_norm", 0.099),
        ("TOO_LITTLE_NOISE", "min_noise_multiplier", 4.001),
        ("DELTA_TOO_LARGE", "delta", 0.999e-5),
        ("EPSILON_OVER_CAP", "max_epsilon_per_experiment", 1e-3),
        ("OPERATOR_EPSILON_OVER_CAP", "max_epsilon_operator", 1e-3),
    ],
)
def test_each_rule_alone_refuses_under_its_own_code(strict, experiment, code, rule, value):
    changes = {rule: value}
    if rule == "delta":  # epsilon at a smaller delta is larger: keep that rule out of it
        changes["max_epsilon_per_experiment"] = 50.0
    with pytest.raises(RefusedError) as error:
        permit(dataclasses.replace(strict, **changes), experiment)
    assert error.value.code == code
    assert f"(rule {rule})" in error.value.message
    assert error.value.advice


def test_the_norm_of_the_factors_counts_too(strict, experiment, changed):
    with pytest.raises(RefusedError, match="CLIPPING_NORM_TOO_LARGE"):
        permit(strict, changed(experiment, privacy={"factor_clipping_norm": 0.2}))


def test_more_sites_share_the_noise_so_the_operator_learns_more(experiment, changed):
    policy = Policy(("*",), 20.0, 20.0, max_epsilon_operator=2.0)
    permit(policy, experiment)
    many = changed(experiment, sites=tuple(f"site-{number}" for number in range(50)))
    with pytest.raises(RefusedError, match="OPERATOR_EPSILON_OVER_CAP"):
        permit(policy, many)
    permit(policy, changed(many, privacy={"trust": "local"}))


def test_no_noise_is_refused_even_by_the_weakest_policy(experiment, changed):
    weakest = Policy(
        ("*",), 1e300, 1e300, delta=0.009, trust=("central", "local", "distributed"), min_noise_multiplier=1e-300
    )
    for multiplier in (0.0, None):
        silent = changed(experiment, privacy={"noise_multiplier": multiplier, "target_epsilon": 1.0})
        with pytest.raises(RefusedError, match="TOO_LITTLE_NOISE"):
            permit(weakest, silent)


def test_the_papers_nominal_epsilon_is_refused_even_by_the_weakest_policy(experiment, changed):
    weakest = Policy(("*",), 1e300, 1e300, delta=0.009, trust=("central", "local", "distributed"))
    permit(weakest, changed(experiment, privacy={"target_epsilon": 1.0}))
    with pytest.raises(RefusedError, match="ACCOUNTING_NOT_HONEST"):
        permit(weakest, changed(experiment, privacy={"target_epsilon": 1.0, "accounting": "paper"}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    noise=st.sampled_from([0.0, 0.2, 0.31, 0.5, 1.0, 1.7, 3.0]),
    rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    rounds=st.sampled_from([1, 5, 40]),
    norm=st.sampled_from([0.1, 1.0, 10.0, 11.0]),
    factor_norm=st.sampled_from([0.0, 10.0, 10.1]),
    delta=st.sampled_from([1e-6, 1e-5, 1e-4]),
    trust=st.sampled_from(["distributed", "local", "central"]),
    sites=st.sampled_from([1, 10]),
    cap=st.sampled_from([0.1, 1.0, 8.0]),
)
def test_a_permitted_experiment_never_passes_a_cap(
    experiment, changed, noise, rate, rounds, norm, factor_norm, delta, trust, sites, cap
):
    policy = Policy(("*",), cap, 2 * cap, max_epsilon_operator=3 * cap)
    privacy = {
        "noise_multiplier": noise,
        "sample_rate": rate,
        "clipping_norm": norm,
        "factor_clipping_norm": factor_norm,
        "target_delta": delta,
        "trust": trust,
    }
    names = tuple(f"site-{number}" for number in range(sites))
    asked = changed(experiment, privacy=privacy, rounds={"number": rounds}, sites=names)
    try:
        permit(policy, asked)
    except RefusedError:
        return
    spent = {event.adversary: epsilon([event], policy.delta) for event in planned_events(asked)}
    assert spent["prompt_recipient"] <= cap
    assert spent["operator"] <= 3 * cap
    assert noise >= policy.min_noise_multiplier
    assert max(norm, factor_norm) <= policy.max_clipping_norm
    assert delta <= policy.delta
    assert trust in policy.trust


@given(value=st.floats(0, 1))
def test_metrics_leave_rounded_or_not_at_all(value):
    def released(metrics):
        return Policy(("*",), 1.0, 1.0, metrics=metrics).released_metrics({"personal_local": value})

    assert released("none") == {}
    assert released("exact") == {"personal_local": value}
    coarse = released("coarse")["personal_local"]
    assert 0 <= coarse <= 1
    assert abs(coarse - value) <= 0.0251
    assert json.loads(json.dumps(round(coarse * 20, 9))) in range(21)
