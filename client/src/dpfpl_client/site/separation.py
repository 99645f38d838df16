"""Runs a site's agent and its SuperNode as two users, so that code which the operator submits cannot read the site.

``separate`` prepares a kit once, as root; ``check_separation`` is made at every start, by trying as those very users
what they must and must not be able to do.
"""

import json
import os
import pwd
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dpfpl_client
from dpfpl_client.data.settings import BUILT_IN
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import ConfigError, DeploymentError

__all__ = ["Identity", "check_separation", "identities", "one_user_warning", "separate"]

_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,31}")
_PROBE = """
import json, os, sys
modes = {"read": os.R_OK, "write": os.W_OK, "enter": os.X_OK}
print(json.dumps([os.access(path, modes[mode]) for path, mode in json.loads(sys.argv[1])]))
"""


@dataclass(frozen=True)
class Identity:
    """A user of this machine: name, numbers, and all its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def identities(settings: SiteSettings) -> tuple[Identity, Identity]:
    """The agent's user and the SuperNode's user that site.toml names.

    Raises:
        ConfigError: one of them does not exist, is root, or they are the same or in one another's group.
    """
    agent, node = (_identity(name) for name in (settings.users.agent, settings.users.node))
    if agent.uid == node.uid or agent.gid == node.gid or agent.gid in node.groups:
        raise ConfigError(
            code="USERS_NOT_SEPARATE",
            message=f"The users {agent.name!r} and {node.name!r} are the same or share the agent's group.",
            advice="Give each a user and a group of its own: useradd --system --user-group NAME",
        )
    return agent, node


def separate(site_file: Path, settings: SiteSettings) -> list[str]:
    """Give the files of a kit and its state to the two users; to be run by root, as often as wanted.

    Returns:
        What was done, a line each.
    """
    _require_root()
    agent, node = identities(settings)
    kit = site_file.parent
    done: list[str] = []

    def give(path: Path, uid: int, gid: int, mode: int) -> None:
        if path.is_symlink() or not path.exists():
            return
        os.chown(path, uid, gid)
        path.chmod(mode)
        done.append(f"{path}: {uid}:{gid} {mode:o}")

    give(kit, 0, 0, 0o711)
    for path in (site_file, settings.path(settings.policy), settings.path(settings.agent.peers)):
        give(path, 0, agent.gid, 0o640)
    for key in (settings.agent.key, settings.agent.aggregation_key):
        give(settings.path(key), agent.uid, agent.gid, 0o600)
    give(settings.path(settings.server.node_key), node.uid, node.gid, 0o600)
    give(settings.path(settings.server.ca_certificate), 0, 0, 0o644)
    for folder in (settings.state_folder, settings.registry_folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _give_all(folder, agent)
        done.append(f"{folder} and all in it: {agent.name}")
    settings.node_folder.mkdir(mode=0o700, exist_ok=True)
    give(settings.node_folder, node.uid, node.gid, 0o700)
    settings.socket_folder.mkdir(mode=0o700, exist_ok=True)
    give(settings.socket_folder, agent.uid, node.gid, 0o2750)
    return done


def check_separation(site_file: Path, settings: SiteSettings) -> tuple[Identity, Identity]:
    """Refuse to start unless the two users can do what they must and nothing that they must not.

    Raises:
        ConfigError: site.toml names no such users, or this is not root.
        DeploymentError: SEPARATION_UNSAFE, with every way in which it is.
    """
    _require_root()
    agent, node = identities(settings)
    kit, data = site_file.parent, settings.data
    private = [settings.state_folder, settings.registry_folder, settings.path(settings.policy), site_file]
    of_agent = (settings.agent.key, settings.agent.aggregation_key, settings.agent.peers)
    private += [*(settings.path(name) for name in of_agent), kit / "control" / "logs"]
    private = [path for path in private if path.exists()]
    if data.source not in BUILT_IN and data.path:
        private.append(Path(data.path))
    code = Path(dpfpl_client.__file__).parent
    never = [(path, mode) for path in private for mode in ("read", "enter") if path.is_dir() or mode == "read"]
    needs = {
        agent: [(path, "read") for path in private if "control" not in path.parts] + [(settings.state_folder, "write")],
        node: [
            (settings.path(settings.server.node_key), "read"),
            (settings.path(settings.server.ca_certificate), "read"),
            (settings.node_folder, "write"),
            (settings.socket_folder, "enter"),
        ],
    }
    forbids = {
        agent: [(settings.path(settings.server.node_key), "read"), (kit, "write")],
        node: [*never, (kit, "write"), (settings.socket_folder, "write"), (code, "write"), (Path(sys.prefix), "write")],
    }
    problems = []
    for user in (agent, node):
        for wanted, tries in ((True, needs[user]), (False, forbids[user])):
            for (path, mode), can in zip(tries, _try(user, tries), strict=True):
                if can is not wanted:
                    problems.append(f"{user.name} {'cannot' if wanted else 'can'} {mode} {path}")
    if problems:
        raise DeploymentError(
            code="SEPARATION_UNSAFE",
            message="The two users are not kept apart: " + "; ".join(problems) + ".",
            advice="Run dpfpl-client separate as root; for the images: chown -R "
            f"{agent.name} FOLDER && chmod -R go= FOLDER, or a group that only {agent.name} is in.",
        )
    return agent, node


def one_user_warning() -> str:
    """What to say, in one line, where both processes run as one user."""
    name = _name_of(os.getuid())
    return (
        f"NOTE: agent and SuperNode both run as {name}: code that the operator submits could read this site's files. "
        "dpfpl-client separate keeps them apart."
    )


def _try(user: Identity, tries: list[tuple[Path, str]]) -> list[bool]:
    """What the user can do, asked of the system by a process of that user."""
    question = json.dumps([(str(path), mode) for path, mode in tries])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROBE, question],
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            cwd="/",
            capture_output=True,
            check=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        raise DeploymentError(
            code="PYTHON_NOT_REACHABLE",
            message=f"The user {user.name} cannot run {sys.executable}.",
            advice="Install DP-FPL where every user can read it, for instance in a virtual environment below /opt.",
        ) from None
    answer: list[bool] = json.loads(done.stdout)
    return answer


def _give_all(folder: Path, user: Identity) -> None:
    """Own everything below ``folder``, without following links."""
    for place, _, files in os.walk(folder, followlinks=False):
        os.chown(place, user.uid, user.gid)
        Path(place).chmod(0o700)
        for name in files:
            os.chown(Path(place) / name, user.uid, user.gid, follow_symlinks=False)


def _identity(name: str) -> Identity:
    try:
        found = pwd.getpwnam(name) if _USER.fullmatch(name) else pwd.getpwuid(int(name))
    except (KeyError, ValueError, OverflowError):
        raise ConfigError(
            code="UNKNOWN_USER",
            message=f"site.toml [users] names {name!r}, which is no user of this machine.",
            advice="Make one: useradd --system --user-group --no-create-home --shell /usr/sbin/nologin NAME",
        ) from None
    if found.pw_uid == 0:
        raise ConfigError(
            code="USERS_NOT_SEPARATE",
            message="site.toml [users] names root.",
            advice="Name a user without special rights.",
        )
    return Identity(found.pw_name, found.pw_uid, found.pw_gid, tuple(os.getgrouplist(found.pw_name, found.pw_gid)))


def _require_root() -> None:
    if os.getuid() != 0:
        raise ConfigError(
            code="NEEDS_ROOT",
            message="Only root can run agent and SuperNode as two other users.",
            advice="Start it with sudo, or start the two by hand as those users; without [users] in site.toml both run "
            "as one user.",
        )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
