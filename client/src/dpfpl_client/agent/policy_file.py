"""The policy as it is now: read again whenever policy.toml changed; stricter at once, looser only when accepted."""

import dataclasses
import hashlib
import json
import os
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from dpfpl_client.agent.audit import AuditLog
from dpfpl_common.config import build, read_toml, to_table
from dpfpl_common.errors import ConfigError, StateError
from dpfpl_common.experiment import Experiment, parse_experiment
from dpfpl_common.ops.files import make_folder_durably, write_durably
from dpfpl_common.policy import Policy, loosened, permit, stricter

__all__ = ["Approvals", "PolicyFile", "Rules", "check_use", "load_policy", "require_protected"]


# Which experiments the administrator approved, by name and configuration, and which ones wait for an answer.


MOST_PENDING = 10


class Approvals:
    """``approved.json`` and ``pending.json`` in the state folder, read again at every call."""

    def __init__(self, state: Path) -> None:
        self._approved, self._pending = state / "approved.json", state / "pending.json"

    def holds(self, experiment: Experiment) -> bool:
        """Whether this very configuration was approved under this name."""
        return self.approved().get(experiment.name, {}).get("digest") == experiment.digest()

    def approved(self) -> dict[str, dict[str, Any]]:
        """Digest and time of each approved name."""
        return _read(self._approved)

    def approve(self, experiment: Experiment) -> None:
        """Approve this configuration; one name has one approved configuration at a time."""
        entry = {"digest": experiment.digest(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        self._write(self._approved, {**self.approved(), experiment.name: entry})
        self._write(self._pending, {n: e for n, e in _read(self._pending).items() if n != experiment.name})

    def revoke(self, name: str) -> bool:
        """Take an approval back; tells whether there was one."""
        approved = self.approved()
        known = approved.pop(name, None) is not None
        self._write(self._approved, approved)
        return known

    def wait(self, experiment: Experiment) -> None:
        """Remember what was refused without an approval: the last ten names, the last configuration of each."""
        pending = _read(self._pending)
        text = experiment.to_json()
        if pending.pop(experiment.name, None) == text and len(pending) < MOST_PENDING:
            return
        kept = dict([*pending.items(), (experiment.name, text)][-MOST_PENDING:])
        self._write(self._pending, kept)

    def pending(self) -> dict[str, Experiment]:
        """What waits for an answer, latest last."""
        found = {}
        for name, text in _read(self._pending).items():
            try:
                found[name] = parse_experiment(text)
            except ConfigError:
                continue  # written by another release
        return found

    def _write(self, path: Path, table: dict[str, Any]) -> None:
        make_folder_durably(path.parent)
        write_durably(path, json.dumps(table, indent=1).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StateError(
            code="APPROVALS_UNREADABLE",
            message=f"{path} cannot be read ({error}).",
            advice="Remove it and approve again.",
        ) from None
    return table


class Rules(Protocol):
    """Where an agent asks what is allowed, before each answer."""

    def current(self) -> Policy:
        """The rules as they are now."""
        ...

    def approves(self, experiment: Experiment) -> bool:
        """Whether the experiment is approved."""
        ...

    def wait_for_approval(self, experiment: Experiment) -> None:
        """Remember a refused experiment, so that the administrator can look at it."""
        ...


class PolicyFile:
    """Rules from policy.toml and from what the administrator approved.

    What was accepted is kept in ``policy.accepted.json`` in the state folder. A rule that becomes stricter in
    policy.toml holds from the next request on, also if it is made looser again afterwards; a rule that becomes looser
    does not hold until ``accept``.
    """

    def __init__(self, path: Path, state: Path, audit: AuditLog) -> None:
        self._path, self._accepted_path, self._audit = path, state / "policy.accepted.json", audit
        self._approvals = Approvals(state)
        self._seen: tuple[object, ...] = ()
        self._current: Policy | None = None

    def current(self) -> Policy:
        """See ``Rules``.

        Raises:
            ConfigError: policy.toml is missing or wrong: nothing is allowed until it is corrected.
            StateError: what was accepted cannot be read or written.
        """
        seen = (_stamp(self._path), _stamp(self._accepted_path))
        if self._current is None or seen != self._seen:
            self._current = None
            self._current = self._read()
            self._seen = (_stamp(self._path), _stamp(self._accepted_path))
        return self._current

    def peek(self) -> Policy:
        """The rules as they are now, without keeping anything."""
        policy, accepted = load_policy(self._path), self._accepted()
        return policy if accepted is None else stricter(accepted, policy)

    def pending(self) -> list[str]:
        """The rules that policy.toml makes looser than what was accepted."""
        accepted = self._accepted()
        return loosened(accepted, load_policy(self._path)) if accepted is not None else []

    def begin_with(self, template: Policy) -> list[str]:
        """Before the first request: nothing in policy.toml that is looser than ``template`` holds unaccepted.

        Returns:
            The looser rules, for the administrator to accept; none where a policy was accepted before.
        """
        if rules := self.looser_than(template):
            policy = load_policy(self._path)
            self._audit.write("policy_looser_than_template", looser=rules, new=_digest(policy))
            self._keep(stricter(template, policy))
        return self.pending()

    def looser_than(self, template: Policy) -> list[str]:
        """The rules in which a policy that nobody accepted yet allows more than ``template``."""
        return loosened(template, load_policy(self._path)) if self._accepted() is None else []

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """For each looser rule what holds now and what policy.toml says, as JSON values."""
        holds, wanted = to_table(self.peek()), to_table(load_policy(self._path))
        return {rule: (holds[rule], wanted[rule]) for rule in self.pending()}

    def accept(self, only: Collection[str] | None = None) -> list[str]:
        """The administrator accepts policy.toml as it is, or ``only`` these of its looser rules.

        Returns:
            The rules that became looser.
        """
        after = load_policy(self._path)
        try:
            before = self._accepted()
        except StateError:
            before = None  # damaged: this is how it is mended
        rules = loosened(before, after) if before is not None else []
        if only is not None and before is not None:
            kept = {rule: getattr(before, rule) for rule in rules if rule not in only}
            after, rules = dataclasses.replace(after, **kept), [rule for rule in rules if rule in only]
        self._audit.write(
            "policy_accepted", looser=rules, old=_digest(before) if before is not None else "", new=_digest(after)
        )
        self._keep(after)
        return rules

    def approves(self, experiment: Experiment) -> bool:
        """See ``Rules``."""
        return self.current().approves(experiment) or self._approvals.holds(experiment)

    def wait_for_approval(self, experiment: Experiment) -> None:
        """See ``Rules``."""
        self._approvals.wait(experiment)

    def _read(self) -> Policy:
        policy, accepted = load_policy(self._path), self._accepted()
        if accepted is None:
            self._audit.write("policy_first_read", new=_digest(policy))
            self._keep(policy)
            return policy
        effective = stricter(accepted, policy)
        rules = loosened(accepted, policy)
        if rules:
            self._audit.write("policy_looser_not_accepted", looser=rules, new=_digest(policy))
        if loosened(effective, accepted):
            self._audit.write("policy_tightened", old=_digest(accepted), new=_digest(effective))
            self._keep(effective)
        return effective

    def _accepted(self) -> Policy | None:
        try:
            table: Any = json.loads(self._accepted_path.read_bytes())
            return build(Policy, table, self._accepted_path.name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ConfigError) as error:
            raise StateError(
                code="POLICY_STATE_DAMAGED",
                message=f"{self._accepted_path} cannot be read ({error}).",
                advice="Look at policy.toml, then: dpfpl-client policy accept.",
            ) from None

    def _keep(self, policy: Policy) -> None:
        make_folder_durably(self._accepted_path.parent)
        write_durably(self._accepted_path, json.dumps(to_table(policy), indent=1).encode())


def check_use(policy_file: Path, state: Path, experiment: Experiment) -> Policy:
    """Refuse to use, serve or export a prompt whose experiment the accepted policy, as it is now, does not admit.

    What was learned under a looser policy stays in the state folder, to be used again once that policy is accepted.

    Args:
        policy_file: policy.toml.
        state: the state folder, with what was accepted and approved.
        experiment: where the prompt comes from.

    Raises:
        RefusedError: code and rule are the policy's.
        ConfigError: there is no valid policy; then nothing is used.
    """
    policy = PolicyFile(policy_file, state, AuditLog(None)).peek()
    permit(policy, experiment, policy.approves(experiment) or Approvals(state).holds(experiment))
    return policy


def load_policy(path: Path) -> Policy:
    """Read policy.toml.

    Raises:
        ConfigError: it is missing, unreadable, a link, writable by others, or says something unknown or impossible:
            then nothing may leave, so the agent must not serve.
    """
    if not os.path.lexists(path):
        raise ConfigError(
            code="NO_POLICY",
            message=f"There is no policy file {path}.",
            advice="Without a policy everything is refused; start from the policy.toml of your kit.",
        )
    require_protected(path)
    return build(Policy, read_toml(path), path.name)


def require_protected(path: Path) -> None:
    """Refuse a file with rules of the site that others could change.

    Raises:
        ConfigError: POLICY_NOT_PROTECTED.
    """
    found = path.lstat()
    if (
        not stat.S_ISREG(found.st_mode)
        or found.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
        or found.st_uid not in (0, os.getuid())
    ):
        raise ConfigError(
            code="POLICY_NOT_PROTECTED",
            message=f"{path} is a link, is writable by others or belongs to another user.",
            advice="Make it a regular file of the agent's user: chmod 640.",
        )
    _require_safe_folder(path.parent)


def _require_safe_folder(folder: Path) -> None:
    """Refuse a folder in which others could put another file in the policy's place."""
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            code="POLICY_NOT_PROTECTED",
            message=f"{folder}, the folder of the policy, is writable by everybody.",
            advice="Take that right away: chmod o-w.",
        )


def _stamp(path: Path) -> object:
    """Changes when the file does."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode, os.getuid())


def _digest(policy: Policy) -> str:
    return hashlib.sha256(json.dumps(to_table(policy), sort_keys=True).encode()).hexdigest()
