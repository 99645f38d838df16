"""Lets the tests here share their samples, as pytest's importlib mode puts no folder on the path, and the command."""

import sys
from pathlib import Path

import pytest
from typed_commands import typed

from dpfpl_server.cli import main as cli

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def dpfpl_server(monkeypatch, capfd):
    """Calls the installed command's entry point; gives its exit code, stdout and stderr."""
    return typed("dpfpl-server", cli, monkeypatch, capfd)
