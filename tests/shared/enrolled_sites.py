"""Sites that made their keys themselves, were added to a server, and pinned each other's aggregation keys."""

from collections.abc import Iterable
from pathlib import Path

from dpfpl_client.agent.keys import aggregation_keys
from dpfpl_client.site.kit import enroll, unpack_kit
from dpfpl_client.site.settings import load_site
from dpfpl_common.secure.enrolment import fingerprint
from dpfpl_server.sites.admin import add_sites
from dpfpl_server.sites.provision import ProvisionRequest, provision


def enrol_sites(folder: Path, names: Iterable[str], port: int = 9092) -> dict[str, Path]:
    """The site.toml of each; the server's folder is ``folder / "server"``."""
    files = {name: folder / "sites" / name / "site.toml" for name in names}
    provision(ProvisionRequest(folder / "server", folder / "kits", (), port=port))
    enrolments = {name: enroll(file, name)[0] for name, file in files.items()}
    for name, file in files.items():
        made, _ = add_sites(folder / "server", (name,), folder / "kits", archive="tar.gz", enrolment=enrolments[name])
        unpack_kit(made.kits[name], file.parent)
        for peer in set(files) - {name}:
            aggregation_keys(load_site(file)).pin(peer, fingerprint(enrolments[peer].aggregation_key))
    return files
