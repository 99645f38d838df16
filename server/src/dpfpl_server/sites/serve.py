"""``dpfpl-server start``: the SuperLink and the executor of runs, each started again when it ends."""

import time
from collections.abc import Callable
from typing import NoReturn

from dpfpl_common.ops.processes import Keeper, ProcessGroup
from dpfpl_server.sites.life import life_of
from dpfpl_server.sites.superlink import (
    SuperLinkSettings,
    launch_superlink,
    start_executor,
    start_superlink,
    superlink_command,
)

__all__ = ["serve"]

LOOK_S = 0.5


def serve(settings: SuperLinkSettings, ready: Callable[[], None], say: Callable[[str], object]) -> NoReturn:
    """Serve until interrupted.

    A part that ends is started again after a growing pause, without limit; meanwhile :mod:`dpfpl_server.sites.life`
    names it. Sites and running experiments survive a SuperLink that is away for a while; a run whose executor ended
    is resumed by ``dpfpl-server run``.

    Args:
        settings: of the server.
        ready: called once, when it serves.
        say: prints a line in the terminal.

    Raises:
        DeploymentError: not provisioned, running already, a port is taken, or the first start fails.
        StateError: another ``dpfpl-server start`` works in this folder.
    """
    superlink_command(settings)  # refuses what is not provisioned before anything is touched
    with life_of("supervisor", settings.server_folder), ProcessGroup() as group:
        superlink = start_superlink(settings, group)
        executor = group.processes[-1]
        ready()
        keepers = [
            Keeper(superlink, lambda: launch_superlink(settings, group), group, say),
            Keeper(executor, lambda: start_executor(settings, group), group, say),
        ]
        while True:
            for keeper in keepers:
                keeper.look()
            time.sleep(LOOK_S)
