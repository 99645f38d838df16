"""``dpfpl-server sites ...`` and ``renew``: who may connect, and for how long the certificates last."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpfpl_common.errors import ConfigError
from dpfpl_server.cli.options import SERVER, Archive, AsJson, CaKey, ServerFolder, print_json

if TYPE_CHECKING:
    from dpfpl_common.secure.enrolment import Enrolment

__all__ = ["renew", "sites_app"]

sites_app = typer.Typer(no_args_is_help=True, help="Who may connect: list, add, revoke, rotate; also while it runs.")

KitsFolder = Annotated[Path, typer.Option("--out", help="folder for the kits")]
PublicKey = Annotated[
    Path | None, typer.Option("--public-key", help="NAME.public.json of dpfpl-client enroll: the site made its keys")
]


@sites_app.command("list", epilog="Example: dpfpl-server sites list --server server")
def list_command(server: ServerFolder = SERVER, as_json: AsJson = False) -> None:
    """Show every site with what the running server sees of it, and every key that was withdrawn."""
    from dpfpl_server.sites.admin import list_sites, revoked_sites
    from dpfpl_server.sites.certificates import expiry_warnings

    rows, withdrawn, warnings = list_sites(server), revoked_sites(server), expiry_warnings(server)
    if as_json:
        print_json({"sites": [dataclasses.asdict(row) for row in rows], "withdrawn": withdrawn, "warnings": warnings})
        return
    for row in rows:
        own = f", its own aggregation key {row.aggregation_key}" if row.aggregation_key else ""
        typer.echo(f"{row.name}: {row.status}, key {row.key}, provisioned {row.provisioned_at}{own}")
    for old in withdrawn:
        typer.echo(f"{old['name']}: key {old['key']} {old['why']} {old['at']}")
    if not rows:
        typer.echo("No site is provisioned.")
    for text in warnings:
        typer.echo(f"WARNING {text}")


@sites_app.command(
    "add",
    epilog="Example: dpfpl-server sites add hospital-c --public-key hospital-c.public.json --out kits --archive tar.gz",
)
def add_command(
    names: Annotated[list[str], typer.Argument(help="names of the new sites")],
    out: KitsFolder,
    public_key: PublicKey = None,
    server: ServerFolder = SERVER,
    archive: Archive = "",
    ca_key: CaKey = None,
    as_json: AsJson = False,
) -> None:
    """Make kits for further sites; a running server accepts them at once.

    With --public-key, for one site, the kit holds no keys; without it, it holds keys that were made here.
    """
    from dpfpl_server.sites.admin import add_sites

    enrolment = _enrolment(public_key, names)
    result, live = add_sites(server, tuple(names), out, archive=archive, ca_key=ca_key, enrolment=enrolment)
    if as_json:
        print_json({"kits": _paths(result.kits), "unchanged": result.unchanged, "live": live})
        return
    _say_kits(result.kits, enrolment)
    for name in result.unchanged:
        typer.echo(f"{name}: has its keys already, nothing changed; dpfpl-server sites rotate replaces them")
    typer.echo(_when(live, "accepts the new sites"))


@sites_app.command("revoke", epilog="Example: dpfpl-server sites revoke hospital-c")
def revoke_command(
    name: Annotated[str, typer.Argument(help="name of the site")],
    server: ServerFolder = SERVER,
    as_json: AsJson = False,
) -> None:
    """Withdraw a site's key for good; a running server refuses it at once."""
    from dpfpl_server.sites.admin import revoke_site

    live = revoke_site(server, name)
    if as_json:
        print_json({"revoked": name, "live": live})
        return
    typer.echo(f"{name}: revoked. {_when(live, 'refuses its key')}")


@sites_app.command("rotate", epilog="Example: dpfpl-server sites rotate hospital-a --out new-kits --archive tar.gz")
def rotate_command(
    name: Annotated[str, typer.Argument(help="name of the site")],
    out: KitsFolder,
    public_key: PublicKey = None,
    server: ServerFolder = SERVER,
    archive: Archive = "",
    as_json: AsJson = False,
) -> None:
    """Give a site new keys; a running server refuses the old ones at once. Do it between two experiments."""
    from dpfpl_server.sites.admin import rotate_site

    enrolment = _enrolment(public_key, [name])
    result, live = rotate_site(server, name, out, archive=archive, enrolment=enrolment)
    if as_json:
        print_json({"kits": _paths(result.kits), "live": live})
        return
    _say_kits(result.kits, enrolment)
    typer.echo(f"{_when(live, 'refuses the old key')} At the site: dpfpl-client init --kit KIT --into ITS_FOLDER")


def renew(
    server: ServerFolder = SERVER,
    ca_key: CaKey = None,
    as_json: AsJson = False,
) -> None:
    """Issue a new server certificate under the same authority; the sites keep their kits."""
    from dpfpl_server.sites.certificates import renew_server_certificate

    expiry = renew_server_certificate(server, ca_key)
    if as_json:
        print_json({"file": expiry.file, "not_after": expiry.not_after.isoformat()})
        return
    days = int(expiry.days_left(datetime.now(UTC)))
    typer.echo(f"The server's certificate is new and lasts {days} days. Restart the server to use it.")


def _enrolment(public_key: Path | None, names: list[str]) -> "Enrolment | None":
    from dpfpl_common.secure.enrolment import read_enrolment

    if public_key is None:
        return None
    if len(names) != 1:
        raise ConfigError(
            code="ONE_SITE",
            message="A public file is one site's.",
            advice="Add the sites one by one, each with its file.",
        )
    return read_enrolment(public_key)


def _say_kits(kits: dict[str, Path], enrolment: "Enrolment | None") -> None:
    from dpfpl_common.secure.enrolment import fingerprint

    for name, path in kits.items():
        typer.echo(f"{name}: {path}")
    if kits and enrolment is None:
        typer.echo(
            "Hand each site its kit in a way that nobody else can read: it holds private keys that were made here. "
            "If this is not a trial, let the site make its own keys: dpfpl-client enroll there, --public-key here."
        )
    elif kits and enrolment is not None:
        typer.echo(
            f"Its aggregation key is {fingerprint(enrolment.aggregation_key)}: compare that with the fingerprint "
            "that its people read to you. The kit holds no secret."
        )


def _when(live: bool, what: str) -> str:
    return f"The running server {what} from now on." if live else f"No server is running; it {what} once it is started."


def _paths(kits: dict[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in kits.items()}
