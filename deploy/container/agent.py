"""The agent of a site in a container: ``python agent.py SITE_FOLDER ADDRESS [LINK_FOLDER]``.

Like ``dpfpl-client agent``, but it listens where the container says and not where site.toml says. With a link folder (a
volume shared with the SuperNode's container) it listens on a socket there and leaves its token beside it, both for its
own user alone.
"""

import sys
from dataclasses import replace
from pathlib import Path

from dpfpl_common.telemetry import silence_telemetry

silence_telemetry()  # before a model library is imported, which reads its switches then

__all__ = ["main"]


def main(site_folder: Path, address: str, link: Path | None) -> None:
    """Serve until the container is stopped."""
    import torch

    from dpfpl_client.agent.build import build_agent
    from dpfpl_client.agent.credential import Credential, read_token
    from dpfpl_client.agent.service import serve
    from dpfpl_client.site_settings import load_site

    settings = load_site(site_folder / "site.toml")
    settings = replace(settings, agent=replace(settings.agent, address=address))
    settings.state_folder.mkdir(mode=0o700, exist_ok=True)
    if link is not None:
        link.mkdir(mode=0o700, exist_ok=True)
        Credential(settings.token_file)
        shared = link / "token.new"
        shared.unlink(missing_ok=True)
        shared.touch(mode=0o600)
        shared.write_text(read_token(settings.token_file) or "", encoding="ascii")
        shared.replace(link / "agent.token")
    torch.set_num_threads(settings.agent.threads)
    built = build_agent(
        settings, lambda done, total: print(f"image features {done}/{total}") if done == total else None
    )
    for problem in built.data.problems:
        print(f"{problem.severity}: {problem.message} [{problem.code}]")
    serve(
        built.endpoint,
        settings.agent_address,
        settings.token_file,
        on_ready=lambda where: print(f"The agent of {settings.name} listens on {where}"),
    )


if __name__ == "__main__":
    from dpfpl_common.errors import DpfplError

    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    except DpfplError as error:
        print(f"{error.code}: {error.message}\n{error.advice}", file=sys.stderr)
        sys.exit(2)
