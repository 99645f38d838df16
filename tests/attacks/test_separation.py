"""A5: agent and SuperNode as two users, and hostile code as the second one, with real processes and real users."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dpfpl_client.site.init import name_users
from dpfpl_client.site.separation import check_separation, identities, one_user_warning, separate
from dpfpl_client.site.settings import UserSettings, load_site
from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.processes import child_environment

pytestmark = [pytest.mark.processes, pytest.mark.privacy]
HERE = Path(__file__).parent
DENIED = ("Permission denied", "Operation not permitted")
NOT_DENIED = {
    "read the node's own key": "yes",
    "connect elsewhere": "yes",
    "leave a daemon behind": "yes",
}
"""What a second user does not prevent: the connection is that user's, and only a container or a firewall closes the
network. A daemon is ended with the SuperNode."""


def cannot_run_here():
    if sys.platform != "linux" or os.getuid() != 0:
        return "needs root on Linux, to have two other users"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        return "needs mount namespaces"
    return ""


@pytest.fixture(scope="module")
def told():
    if reason := cannot_run_here():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="dpfpl") as folder:
        Path(folder).chmod(0o755)
        program = [sys.executable, str(HERE / "separated_site.py"), folder]
        done = subprocess.run(
            ["unshare", "-m", "sh", str(HERE / "in_namespace.sh"), folder, *program],
            env={**child_environment({"OMP_NUM_THREADS": "1"}, offline=True), "DPFPL_REGISTRY": ""},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_A5_hostile_code_reads_nothing_of_the_site(told):
    got = told["hostile"]
    assert {act: got.pop(act) for act in NOT_DENIED} == NOT_DENIED
    assert got.pop("find a secret of whoever started it in the environment") == "not there"
    assert len(got) == 21
    assert {act: answer for act, answer in got.items() if answer not in DENIED} == {}
    assert told["agent lives"]
    assert told["agent answers"] == 1
    assert told["nothing left"]  # nor the daemon


def test_A5_honest_code_reaches_the_agent_and_both_run_as_their_users(told):
    assert told["honest"] == "round 1"
    assert told["owners"] == {"agent": True, "supernode": True}
    assert told["modes"] == {
        "run": "0o2750",
        "run/agent.sock": "0o660",
        "run/agent.token": "0o640",
        "node.key": "0o600",
        "agent.key": "0o600",
        "aggregation.key": "0o600",
        "state": "0o700",
        "control/logs": "0o700",
        "policy.toml": "0o640",
    }


def test_L11_the_agents_health_over_http_is_for_every_user_and_its_numbers_are_not(told):
    """The agent runs as a user of its own and tells its health to any probe; the SuperNode's user reads no number."""
    health, metrics = told["monitor as the SuperNode's user"]
    assert (health[:4], json.loads(health[4:])) == ("200 ", {"status": "healthy", "reasons": []})
    assert (metrics[:4], json.loads(metrics[4:])) == ("401 ", {"code": "TOKEN_WRONG"})
    health, metrics = told["monitor with its token"]
    assert health.startswith("200 ")
    assert metrics.startswith("200 ")
    assert 'dpfpl_site_part_healthy{part="agent"} 1' in metrics
    assert 'dpfpl_site_part_healthy{part="budget"} 1' in metrics
    assert 'part="link"' not in metrics  # in the SuperNode's folder, which the agent's user cannot enter
    health, _ = told["monitor, nothing left"]
    reasons = [{"part": "budget", "code": "BUDGET_EXHAUSTED"}]  # codes only
    assert (health[:4], json.loads(health[4:])["reasons"]) == ("503 ", reasons)
    assert told["monitor, mended"][0].startswith("200 ")


def test_unsafe_set_ups_are_refused_naming_what_is_open(told):
    assert told["open images"]["code"] == "SEPARATION_UNSAFE"
    assert "data" in told["open images"]["message"]
    assert told["closed images"]["code"] == ""
    assert "policy.toml" in told["open policy"]["message"]


SITE = 'name = "north"\n[data]\nsource = "digits"\n'


def site(folder, agent="", node=""):
    (folder / "site.toml").write_text(SITE)
    if agent:
        name_users(folder / "site.toml", agent, node)
    return folder / "site.toml"


def code(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return caught.value.code


def test_users_are_checked(tmp_path, monkeypatch):
    me = pwd.getpwuid(os.getuid()).pw_name
    other = next(user.pw_name for user in pwd.getpwall() if user.pw_uid not in (0, os.getuid()))
    assert code(identities, load_site(site(tmp_path, "no-such-user", other))) == "UNKNOWN_USER"
    assert code(identities, load_site(site(tmp_path, other, other))) == "USERS_NOT_SEPARATE"
    assert code(identities, load_site(site(tmp_path, "root", other))) == "USERS_NOT_SEPARATE"
    assert code(UserSettings, "a", "") == "IMPOSSIBLE_VALUE"
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    for call in (separate, check_separation):
        assert code(call, tmp_path / "site.toml", load_site(site(tmp_path, other, me))) == "NEEDS_ROOT"


def test_where_the_two_are_one_user_this_is_said_in_one_line():
    line = one_user_warning()
    assert "\n" not in line
    assert pwd.getpwuid(os.getuid()).pw_name in line
    assert "could read" in line


def test_paths_of_separated_users_are_apart(tmp_path, monkeypatch):
    alone = load_site(site(tmp_path))
    assert (alone.node_folder, alone.token_file) == (tmp_path / "state", tmp_path / "state/agent.token")
    (tmp_path / "site.toml").write_text('name = "north"\n[data]\nsource = "folder"\npath = "images"\n')
    monkeypatch.delenv("DPFPL_REGISTRY", raising=False)
    name_users(tmp_path / "site.toml", "a", "b")
    apart = load_site(tmp_path / "site.toml")
    # Root's commands and the agent, whose HOME is its state folder, must mean the same one.
    assert apart.registry_folder == tmp_path / "state.registry"
    monkeypatch.setenv("DPFPL_REGISTRY", str(tmp_path / "of-the-machine"))
    assert apart.registry_folder == tmp_path / "of-the-machine"
    assert apart.node_folder == tmp_path / "node"
    assert apart.agent_address == f"unix:{tmp_path}/run/agent.sock"
    assert apart.token_file == tmp_path / "run/agent.token"
    name_users(tmp_path / "site.toml", "c", "d")
    assert load_site(tmp_path / "site.toml").users == UserSettings("c", "d")
