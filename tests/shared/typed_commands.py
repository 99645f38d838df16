"""A command of ours as somebody types it, in the test's own process."""

import sys


def typed(program, cli, monkeypatch, capfd, *, width=200):
    """Calls what the installed program calls with words; gives its exit code, standard output and error output."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        monkeypatch.setattr(cli, "console", cli.Console(stderr=True, width=width, markup=False, highlight=False))
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return call
