"""Sites on neighbouring data, seen by an operator."""

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from site_view import View, differences, no_waiting, same_payloads

POLICY = """
experiments = ["*"]
max_epsilon_per_experiment = 50.0
max_epsilon_lifetime = 1000.0
max_epsilon_operator_lifetime = 1000.0
units = ["example", "site"]
trust = ["distributed", "local", "secure"]
metrics = "{metrics}"
reply_slot = 0.02
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def agent_key():
    """One signing key for all sites of a comparison: signatures are then a function of what they sign."""
    return Ed25519PrivateKey.from_private_bytes(b"noninterference, a key for tests").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(scope="session")
def first_views():
    """What was seen of each site to which neighbours are compared, by what it is and what was asked of it."""
    return {}


@pytest.fixture
def neighbours_differ(tmp_path, agent_key, monkeypatch, first_views):
    """How two sites differ, in words, after a script of questions: one on data as made, one on data as changed."""
    same_payloads(monkeypatch)
    no_waiting(monkeypatch)

    def view(name, source, make, change, script, metrics):
        path = make(tmp_path / f"{name}-data")
        change(path)
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        model = 'model = "embedded-vlm"\n' if source == "questions" else ""
        (folder / "site.toml").write_text(
            f'name = "north"\nregistry = "registry"\n{model}[data]\nsource = "{source}"\npath = "{path}"\n'
        )
        (folder / "policy.toml").write_text(POLICY.format(metrics=metrics))
        (folder / "policy.toml").chmod(0o640)
        (folder / "agent.key").write_bytes(agent_key)
        (folder / "agent.key").chmod(0o600)
        seen = View(folder / "site.toml")
        script(seen)
        return seen.seen

    def compare(source, make, change, script, metrics):
        known = (source, make, script, metrics)
        if known not in first_views:
            first_views[known] = view("one", source, make, lambda _: None, script, metrics)
        return "\n".join(differences(first_views[known], view("other", source, make, change, script, metrics)))

    return compare
