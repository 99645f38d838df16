"""What the commands share: their common options, and how they print."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dpfpl_common.ops.text import printable_lines

if TYPE_CHECKING:
    from dpfpl_client.agent.audit import AuditLog
    from dpfpl_client.site.settings import SiteSettings

__all__ = ["SITE", "AsJson", "SiteFile", "Yes", "audit_log", "console", "load", "print_json", "say", "tell"]

SiteFile = Annotated[Path, typer.Option("--site", help="the site's site.toml")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]
SITE = Path("site.toml")
console = Console(stderr=True, markup=False, highlight=False)


def load(site: Path) -> "SiteSettings":
    """The settings in site.toml."""
    from dpfpl_client.site.settings import load_site  # a quarter of a second, which --help does not wait for

    return load_site(site)


def audit_log(settings: "SiteSettings") -> "AuditLog":
    """Where what the administrator does is written down."""
    from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog

    return AuditLog(settings.state_folder / AUDIT_FILE)


def say(text: object = "") -> None:
    """Print a text without the control characters that file names and others' names may bring along."""
    typer.echo(printable_lines(str(text)))


def print_json(content: Any) -> None:
    """Print what a script reads."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def tell(as_json: bool, content: Any, text: str) -> None:
    """Print the content as JSON, or the text."""
    if as_json:
        print_json(content)
    else:
        say(text)
