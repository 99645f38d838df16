"""What the commands print."""

import typer

from dpfpl_common.ops.text import printable_lines

__all__ = ["say"]


def say(text: object = "") -> None:
    """Print a text without the control characters that file names and others' names may bring along."""
    typer.echo(printable_lines(str(text)))
