"""DR12: the terminal of a site whose key was withdrawn says so; other ends of its SuperNode are tried again."""

from types import SimpleNamespace

import pytest

from dpfpl_client.node.launch import end_for_good
from dpfpl_client.node.link import LinkState, link_file, write_link


@pytest.fixture
def site(tmp_path):
    settings = SimpleNamespace(name="north", node_folder=tmp_path)
    link_file(tmp_path).parent.mkdir()
    return settings


def node(text):
    return SimpleNamespace(name="SuperNode of north", log_file="supernode.log", log_text=lambda: text)


def test_DR12_a_revoked_site_reads_that_it_was_revoked(site):
    reason = "KEY_WITHDRAWN: the server does not accept this site's key any more"
    write_link(link_file(site.node_folder), LinkState(started_at=1.0, answered_at=2.0, failed_at=3.0, reason=reason))
    error = end_for_good(site, node("Traceback ..."), 1)
    assert error.code == "KEY_WITHDRAWN"
    assert "revoked" in error.message
    assert "ledger and its prompt stay" in error.message
    assert "ask the operator" in error.advice


def test_DR12_a_site_that_is_unknown_at_its_start_is_not_started_again(site):
    assert end_for_good(site, node("Failed to activate SuperNode"), 1).code == "SITE_UNKNOWN"


@pytest.mark.parametrize("reason", ["", "UNREACHABLE: no connection to the server"])
def test_DR2_a_killed_supernode_is_started_again(site, reason):
    write_link(link_file(site.node_folder), LinkState(started_at=1.0, reason=reason))
    assert end_for_good(site, node("INFO : ... Connection attempt failed"), 137) is None
