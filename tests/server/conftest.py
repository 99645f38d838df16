"""Lets the tests here share their samples, as pytest's importlib mode puts no folder on the path, and the command."""

import sys
from pathlib import Path

import pytest

from dpfpl_server.cli import main as cli

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def dpfpl_server(monkeypatch, capfd):
    """Calls the installed command's entry point; gives its exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dpfpl-server", *map(str, arguments)])
        monkeypatch.setattr(cli, "console", cli.Console(stderr=True, width=200, markup=False, highlight=False))
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return call
