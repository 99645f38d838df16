"""``dpfpl-bench data``: what the named image sets are, and whether a downloaded archive is the published one."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dpfpl_common.errors import ConfigError

__all__ = ["EXAMPLES", "data"]

EXAMPLES = """
Examples:

  dpfpl-bench data

  dpfpl-bench data oxford_flowers --archive 102flowers.tgz
"""


def data(
    name: Annotated[str, typer.Argument(help="a set's name; left out: all")] = "",
    archive: Annotated[Path | None, typer.Option(help="the downloaded archive to check")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the named sets: hub id, number of classes, template, page and checksum."""
    from dpfpl_bench.simulation.sources import FIELD, check_archive

    if name and name not in FIELD:
        raise ConfigError(
            code="UNKNOWN_DATA",
            message=f"There is no set called {name!r}.",
            advice=f"Known: {', '.join(FIELD)}; any other image folder is given by its path.",
        )
    if archive is not None:
        if not name:
            raise ConfigError(code="UNKNOWN_DATA", message="--archive needs a name.", advice="Say which set it is.")
        check_archive(FIELD[name], archive)
    shown = [FIELD[name]] if name else list(FIELD.values())
    keys = ("name", "title", "hub", "classes", "template", "init_text", "page", "archive", "md5")
    rows = [{key: getattr(each, key) for key in keys} for each in shown]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    for row in rows:
        typer.echo(f"{row['name']}: {row['title']}, {row['classes']} classes, {row['template']!r}")
        typer.echo(f"  {row['page']}\n  hub {row['hub']}; archive {row['archive']}, MD5 {row['md5']}")
    if archive is not None:
        typer.echo(f"{archive}: the checksum is right")
