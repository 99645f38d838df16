"""The agent of a site as a container of its own: ``python agent.py SITE_FOLDER LINK_FOLDER``.

Listens on a socket in the link folder (a volume shared with the SuperNode's container) and leaves a copy of its token
beside it, both for its own user alone. Then it is ``dpfpl-client agent``.
"""

import os
import sys
from pathlib import Path

from dpfpl_client.agent.endpoint import Credential, read_token
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import DpfplError

__all__ = ["share_token"]


def share_token(site_file: Path, link: Path) -> None:
    """Make the token if there is none, and put a copy into the link folder, which is made for this user alone."""
    settings = load_site(site_file)
    settings.state_folder.mkdir(mode=0o700, exist_ok=True)
    Credential(settings.token_file)
    link.mkdir(mode=0o700, exist_ok=True)
    copy = link / "token.new"
    copy.unlink(missing_ok=True)
    copy.touch(mode=0o600)
    copy.write_text(read_token(settings.token_file) or "", encoding="ascii")
    copy.replace(link / "agent.token")


def main(site_file: Path, link: Path) -> None:
    """Share the token and become the agent."""
    share_token(site_file, link)
    command = [sys.executable, "-m", "dpfpl_client", "agent", "--site", str(site_file)]
    os.execv(sys.executable, [*command, "--address", f"unix:{link}/agent.sock"])  # noqa: S606


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) / "site.toml", Path(sys.argv[2]))
    except DpfplError as error:
        print(f"{error.code}: {error.message}\n{error.advice}", file=sys.stderr)
        sys.exit(2)
