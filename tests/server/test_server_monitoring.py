"""What the operator's dashboards, probes and doctor see; the dashboard file names only metrics that exist."""

import json
import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from server_samples import FakeControl, clock_at, entry, keep, make_experiment
from typer.testing import CliRunner

from dpfpl_client.agent.metrics import MeteredAgent, ledger_families
from dpfpl_common.errors import DeploymentError, RefusedError
from dpfpl_common.ops.monitor import render
from dpfpl_common.wire.payloads import SiteReply, TrainRequest
from dpfpl_server.cli import main as cli
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.result import privacy_statement
from dpfpl_server.sites import admin as sites_admin
from dpfpl_server.sites import certificates as expiry
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.register import load_sites
from dpfpl_server.watch import doctor as server_doctor
from dpfpl_server.watch import metrics
from dpfpl_server.watch.console.snapshot import snapshot
from dpfpl_server.watch.doctor import examine_server
from dpfpl_server.watch.metrics import experiment_families, server_families, server_troubles

REPOSITORY = Path(__file__).parents[2]


def complete(runs, experiment, signal=0.0):
    folder = RunFolder(runs / experiment.name)
    folder.begin(experiment)
    told = {"metrics": {"north": {"personal_local": 0.75}}, "signal": {"north": signal}}
    dropped = {"south": "NO_REPLY: nothing came"}
    keep(folder, entry(1, ("north",), **told), entry(2, dropped=dropped, **told))
    folder.add_event({"phase": "TRAINING", "round": 3, "waiting_for": ["south"]})
    return folder


@pytest.fixture
def server(tmp_path):
    provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("north", "south")))
    return tmp_path / "server"


@pytest.fixture
def running(monkeypatch, server):
    """A SuperLink that answers; its statuses may be changed, and a site that it does not know be taken out."""
    control = FakeControl()
    for name, site in load_sites(server).items():
        control.register(name, site.public_key)
    for module in (metrics, server_doctor, sites_admin):
        monkeypatch.setattr(module, "open_control", lambda folder: control)
    return control


def test_the_metrics_say_what_the_run_says(tmp_path):
    complete(tmp_path, make_experiment())
    text = render(experiment_families(tmp_path))
    for line in (
        'dpfpl_experiment_round{experiment="pilot"} 2',
        'dpfpl_experiment_rounds_planned{experiment="pilot"} 3',
        'dpfpl_experiment_round_seconds_total{experiment="pilot"} 3',
        'dpfpl_experiment_bytes_total{experiment="pilot",direction="up"} 20',
        'dpfpl_experiment_replies_total{experiment="pilot",outcome="accepted",reason=""} 2',
        'dpfpl_experiment_replies_total{experiment="pilot",outcome="dropped",reason="NO_REPLY"} 1',
        'dpfpl_experiment_accuracy{experiment="pilot",kind="local"} 0.75',
        'dpfpl_experiment_state{experiment="pilot",state="CUT_OFF"} 1',
    ):
        assert line in text.splitlines()
    spent = float(re.search(r'epsilon\{experiment="pilot",adversary="prompt_recipient"\} (\S+)', text)[1])
    assert spent == privacy_statement(make_experiment(), 2)["epsilons"][0]["epsilon"] > 0


@pytest.mark.privacy
def test_with_secretly_sampled_sites_nothing_tells_who_took_part(tmp_path):
    complete(tmp_path, make_experiment(unit="site", site_sample_rate=0.5, trust="central", noise_multiplier=1.0))
    text = render(experiment_families(tmp_path))
    assert "dpfpl_experiment_epsilon" in text
    for telling in ("replies", "seconds", "bytes", "waiting", "accuracy", "south", "north"):
        assert telling not in text


def test_a_damaged_run_is_named_and_hides_no_other(tmp_path):
    complete(tmp_path, make_experiment())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "experiment.json").write_text("{")
    text = render(experiment_families(tmp_path))
    assert 'dpfpl_experiment_unreadable{experiment="broken"} 1' in text
    assert 'dpfpl_experiment_round{experiment="pilot"} 2' in text


class Agent:
    def train(self, request):
        if request.round > 1:
            raise RefusedError(code="BUDGET_EXHAUSTED", message="secret", advice="secret")
        return SiteReply("north", 1, None, {"personal_local": 0.5})

    evaluate = train


def test_the_dashboard_shows_only_metrics_that_exist(tmp_path, server, running):
    complete(tmp_path / "runs", make_experiment())
    agent = MeteredAgent(Agent())
    request = TrainRequest(make_experiment(), 1, np.zeros(make_experiment().context_shape, "<f4"), evaluate=True)
    agent.train(request)
    summary = {
        "spent_epsilons": {"operator": 1.0},
        "max_epsilon_lifetime": 20.0,
        "max_epsilon_operator_lifetime": 40.0,
        "experiments": [{"experiment": "pilot", "charges": 1, "epsilons": {"operator": "infinite"}}],
    }
    families = [*server_families(server, tmp_path / "runs"), *agent.families(), *ledger_families(summary)]
    known = {family.name for family in families}
    known |= {
        "dpfpl_site_healthy",
        "dpfpl_site_part_healthy",
        "dpfpl_site_server_silent_seconds",
    }  # test_site_health.py
    board = json.loads((REPOSITORY / "deploy" / "monitoring" / "grafana-dashboard.json").read_text())
    used = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"dpfpl_[a-z_]+", target["expr"])
    }
    assert used <= known
    assert known - used <= {"dpfpl_server_up"} | used, "every metric is on the dashboard"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for family in families:
        assert (family.kind == "counter") == family.name.endswith("_total")


def test_the_agents_counters_hold_codes_and_no_words():
    agent = MeteredAgent(Agent(), clock=iter(range(100)).__next__)
    context = np.zeros(make_experiment().context_shape, "<f4")
    agent.train(TrainRequest(make_experiment(), 1, context, evaluate=True))
    with pytest.raises(RefusedError):
        agent.train(TrainRequest(make_experiment(), 2, context, evaluate=True))
    text = render(agent.families())
    assert 'dpfpl_agent_requests_total{call="train",outcome="answered"} 1' in text
    assert 'dpfpl_agent_requests_total{call="train",outcome="BUDGET_EXHAUSTED"} 1' in text
    assert 'dpfpl_agent_accuracy{experiment="pilot",kind="personal_local"} 0.5' in text
    assert 'dpfpl_agent_seconds_total{call="train"} 2' in text
    assert "secret" not in text
    assert "cat" not in text


def test_health_is_red_for_real_reasons_only(server, running, monkeypatch):
    assert server_troubles(server) == []
    running.status["north"] = "offline"
    assert server_troubles(server) == [], "an absent site is its experiment's business"
    end = next(e.not_after for e in expiry.expiries(server) if e.file == "server.crt")

    monkeypatch.setattr(metrics, "datetime", clock_at(end + timedelta(minutes=1)))
    assert [t.code for t in server_troubles(server)] == ["CERTIFICATE_EXPIRED"]


def test_L11_without_a_superlink_the_probe_is_red(server):
    assert [t.code for t in server_troubles(server)] == ["NOT_STARTED"]
    result = CliRunner().invoke(cli.app, ["health", "--server", str(server), "--json"])
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, "unhealthy")


def by_code(findings):
    return {finding.code for finding in findings if finding.code}


def test_O9_the_servers_doctor_names_what_is_wrong(server, running, monkeypatch, tmp_path):
    seen = lambda address, ca: type("Seen", (), {"certificate_end": end, "tls_version": "TLSv1.3"})()  # noqa: E731
    end = next(e.not_after for e in expiry.expiries(server) if e.file == "server.crt")
    monkeypatch.setattr(server_doctor, "probe_server", seen)
    assert by_code(examine_server(server)) <= {"STATE_NOT_DURABLE"}
    running.status["south"] = "offline"
    assert "SITES_AWAY" in by_code(examine_server(server))
    del running.registered[2]
    assert "KEY_NOT_REGISTERED" in by_code(examine_server(server))

    def closed(address, ca):
        raise DeploymentError(code="PORT_CLOSED", message="refused", advice="")

    monkeypatch.setattr(server_doctor, "probe_server", closed)
    (server / "server.key").chmod(0o644)
    provision(ProvisionRequest(tmp_path / "other", tmp_path / "k", ()))
    (server / "server.key").write_bytes((tmp_path / "other" / "server.key").read_bytes())
    assert {"PORT_CLOSED", "KEY_READABLE", "KEY_MISMATCH"} <= by_code(examine_server(server))
    (server / "server.crt").unlink()
    assert by_code(examine_server(server)) == {"NOT_PROVISIONED"}


def test_O9_the_doctors_exit_codes(server, running, monkeypatch):
    def call(*more):
        return CliRunner().invoke(cli.app, ["doctor", "--server", str(server), *more])

    monkeypatch.setattr(server_doctor, "examine_server", lambda folder: [])
    assert (call().exit_code, call().stdout.strip()) == (0, "All is well.")
    from dpfpl_common.ops.diagnostics import ERROR, WARNING, Finding

    warning, error = Finding(WARNING, "a", "b", "C", "d"), Finding(ERROR, "a", "b", "C", "d")
    monkeypatch.setattr(server_doctor, "examine_server", lambda folder: [warning])
    assert call().exit_code == 1
    monkeypatch.setattr(server_doctor, "examine_server", lambda folder: [warning, error])
    assert (call().exit_code, json.loads(call("--json").stdout)["result"]) == (2, "errors")


@pytest.mark.privacy
def test_NI8_metrics_and_console_are_functions_of_the_aggregate(tmp_path):
    """Two runs with the same sums and other single messages show the same, and no sample is a site's."""
    shown = []
    for signal in (0.0, 9.0):
        runs = tmp_path / str(signal)
        folder = complete(runs, make_experiment(trust="distributed"), signal)
        families = experiment_families(runs)
        shown.append((render(families), {**snapshot(folder, {}, []), "at": None}))
        named = {name for family in families for labels, _ in family.samples for name in labels}
        assert named == {"experiment", "state", "adversary", "direction", "outcome", "reason", "kind"}
    assert shown[0] == shown[1]
