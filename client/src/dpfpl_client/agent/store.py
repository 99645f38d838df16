"""Where a site keeps its personal prompts and releases: one file a round, written whole or not at all."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dpfpl_client.agent.sums import KeptSum
from dpfpl_client.learning.personal import PersonalState
from dpfpl_common.errors import PayloadError, RefusedError, StateError
from dpfpl_common.experiment import Experiment, parse_experiment
from dpfpl_common.ops.files import fsync_folder, is_full, make_folder_durably, write_durably
from dpfpl_common.optimizer import OptimizerState
from dpfpl_common.wire.payloads import Context, SiteReply

__all__ = ["Choice", "DiskStore", "MemoryStore", "Record", "Store"]

_EXPERIMENT = "experiment.json"
_FINAL = "final.safetensors"
_ROUND = re.compile(r"round-(\d+)\.safetensors")


@dataclass(frozen=True)
class Record:
    """What one round left behind.

    Attributes:
        request_digest: the request that it answers.
        reply: exactly what was, or will be, sent.
        global_context: p_G as it came with the request.
        state: the personal prompt after the round.
    """

    request_digest: str
    reply: SiteReply
    global_context: Context
    state: PersonalState

    def to_bytes(self) -> bytes:
        """One safetensors file."""
        assert self.reply.update is not None
        meta = {
            "request_digest": self.request_digest,
            "site": self.reply.site,
            "round": self.reply.round,
            "metrics": self.reply.metrics,
            "optimizer_steps": self.state.optimizer.steps,
        }
        tensors = {
            "update": self.reply.update,
            "global_context": self.global_context,
            "personal_context": self.state.context,
            "optimizer_first": self.state.optimizer.first,
            "optimizer_second": self.state.optimizer.second,
        }
        if self.state.class_sums is not None:
            tensors["class_sums"] = self.state.class_sums
        if self.state.vote is not None:
            tensors["vote"] = self.state.vote
        if self.reply.evidence is not None:
            tensors["evidence"] = self.reply.evidence
        if self.state.parameters is not None:
            tensors["personal_parameters"] = self.state.parameters
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        return bytes(save(contiguous, {"record": json.dumps(meta)}))

    @classmethod
    def from_bytes(cls, content: bytes) -> "Record":
        """The inverse of ``to_bytes``.

        Raises:
            StateError: the bytes are no complete record.
        """
        try:
            tensors = load(content)
            header = int.from_bytes(content[:8], "little")
            meta = json.loads(json.loads(content[8 : 8 + header])["__metadata__"]["record"])
            reply = SiteReply(
                site=meta["site"],
                round=meta["round"],
                update=tensors["update"],
                metrics=meta["metrics"],
                evidence=tensors.get("evidence"),
            )
            optimizer = OptimizerState(
                tensors["optimizer_first"], tensors["optimizer_second"], int(meta["optimizer_steps"])
            )
            state = PersonalState(
                tensors["personal_context"],
                optimizer,
                tensors.get("class_sums"),
                tensors.get("personal_parameters"),
                tensors.get("vote"),
            )
            return cls(meta["request_digest"], reply, tensors["global_context"], state)
        except (SafetensorError, PayloadError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise _damaged(error) from None

    def digest(self) -> str:
        """sha256 of the stored bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


@dataclass(frozen=True)
class Choice:
    """What the votes chose, and what a site needs to use it.

    Attributes:
        chosen: ``evidence`` or ``text``.
        pool: as ``dpfpl_common.evidence.pack_pool`` gives it.
        shares: [classes], exact, of the site's training images; never leaves the site.
        own: None where the pool suits the site's training images better than its own rows; else what goes with its
            rows (``PromptLearner.own_moment``). Whether there is one is exact, so it never leaves the site.
    """

    chosen: str
    pool: Context
    shares: npt.NDArray[np.float64]
    own: npt.NDArray[np.float64] | None


class Store(ABC):
    """The files of a site's experiments: what is in each and how it is read back. A subclass says where they lie."""

    @abstractmethod
    def check_kept(self, experiment: str) -> None:
        """Refuse an experiment that the site has left for good: RefusedError FORGOTTEN."""

    def remember(self, experiment: Experiment) -> None:
        """Keep the experiment's configuration; the same name always means the same configuration."""
        if _EXPERIMENT not in self._names(experiment.name):
            self._write(experiment.name, _EXPERIMENT, experiment.to_json().encode())

    def write(self, experiment: str, round_number: int, record: Record) -> None:
        """Keep a record; durable on return."""
        self._write(experiment, _round_file(round_number), record.to_bytes())

    def read(self, experiment: str, round_number: int) -> Record | None:
        """The record of a round, or None."""
        content = self._read(experiment, _round_file(round_number))
        return None if content is None else Record.from_bytes(content)

    def last_round(self, experiment: str) -> int:
        """The last round with a record; 0 if there is none."""
        return max(self.rounds(experiment), default=0)

    def rounds(self, experiment: str) -> list[int]:
        """The rounds with a record, in order."""
        return sorted(int(found[1]) for name in self._names(experiment) if (found := _ROUND.fullmatch(name)))

    def write_scores(self, experiment: str, scores: tuple[float, ...]) -> str:
        """Keep the scores that an experiment released; durable on return. Gives their digest."""
        content = json.dumps([score.hex() for score in scores]).encode()
        self._write(experiment, "scores.json", content)
        return hashlib.sha256(content).hexdigest()

    def read_scores(self, experiment: str, digest: str) -> tuple[float, ...]:
        """The scores with this digest.

        Raises:
            StateError: they are gone or others.
        """
        content = self._read(experiment, "scores.json") or b""
        try:
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError("other scores")
            return tuple(float.fromhex(text) for text in json.loads(content))
        except (ValueError, TypeError) as error:
            raise _damaged(error) from None

    def write_sum(self, experiment: str, name: str, kept: KeptSum) -> None:
        """Keep what a secure sum needs; durable on return."""
        self._write(experiment, f"sum-{name}.bin", kept.to_bytes())

    def read_sum(self, experiment: str, name: str) -> KeptSum:
        """What is kept of a secure sum; nothing yet where it has not begun."""
        content = self._read(experiment, f"sum-{name}.bin")
        return KeptSum() if content is None else KeptSum.from_bytes(content)

    def write_pace(self, experiment: str, seconds: float) -> None:
        """Keep how long the experiment's answers take."""
        self._write(experiment, "reply_time.json", json.dumps(seconds).encode())

    def read_pace(self, experiment: str) -> float:
        """How long the experiment's answers take; 0 where that is not known yet."""
        content = self._read(experiment, "reply_time.json")
        try:
            return 0.0 if content is None else float(json.loads(content))
        except (ValueError, TypeError) as error:
            raise _damaged(error) from None

    def write_final(self, experiment: str, global_context: Context, choice: Choice | None = None) -> None:
        """Keep the global context that came last, after all rounds, and what the votes chose."""
        tensors: dict[str, Any] = {"global_context": np.ascontiguousarray(global_context)}
        if choice is not None:
            tensors[f"pool.{choice.chosen}"] = np.ascontiguousarray(choice.pool)
            tensors["shares"] = np.ascontiguousarray(choice.shares, dtype=np.float64)
            if choice.own is not None:
                tensors["own"] = np.ascontiguousarray(choice.own, dtype=np.float64)
        self._write(experiment, _FINAL, save(tensors))

    def read_final(self, experiment: str) -> Context | None:
        """The global context that came last, or None."""
        return self._read_final(experiment).get("global_context")

    def read_choice(self, experiment: str) -> Choice | None:
        """The pool that came last with what the votes chose; None without evidence."""
        tensors = self._read_final(experiment)
        pool = next((name for name in tensors if name.startswith("pool.")), None)
        if pool is None:
            return None
        try:
            shares, own = tensors["shares"], tensors.get("own")
            sizes = [1 + k * (k + 1) // 2 for k in range(len(shares))]
            if own is not None and (
                own.dtype != np.float64 or own.shape not in [(n,) for n in sizes] or not np.isfinite(own).all()
            ):
                raise ValueError("own")
        except (KeyError, ValueError, TypeError) as error:
            raise _damaged(error) from None
        return Choice(pool.removeprefix("pool."), tensors[pool], shares, own)

    def _read_final(self, experiment: str) -> dict[str, Any]:
        content = self._read(experiment, _FINAL)
        if content is None:
            return {}
        try:
            tensors: dict[str, Any] = load(content)
            tensors["global_context"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise _damaged(error) from None
        return tensors

    @abstractmethod
    def _names(self, experiment: str) -> Iterable[str]:
        """The names of an experiment's files."""

    @abstractmethod
    def _read(self, experiment: str, name: str) -> bytes | None:
        """What is in a file; None where there is none."""

    @abstractmethod
    def _write(self, experiment: str, name: str, content: bytes) -> None:
        """Replace a file, durably."""


class DiskStore(Store):
    """Records as files ``experiments/<name>/round-<number>.safetensors`` under the state folder.

    After a write that failed for another reason than a full disk, nobody knows what reached the disk: from then on
    nothing is written or read until there is a new store, which is a new agent.
    """

    def __init__(self, folder: Path) -> None:
        """Use the state folder ``folder``; nothing is made before the first write."""
        self._folder = folder / "experiments"
        self._forgotten = folder / "forgotten"
        self._broken = False

    def check_kept(self, experiment: str) -> None:
        """See ``Store``."""
        if (self._forgotten / experiment).exists():
            raise RefusedError(
                code="FORGOTTEN",
                message="The site has left this experiment and removed its prompt.",
                rule="forget",
                advice="Take the site off the list; it may take part again under a new experiment name.",
            )

    def forget(self, experiment: str) -> bool:
        """Leave an experiment for good: first nothing of it is answered or written any more, then its files go.

        The ledger is untouched: what was released stays paid. Tells whether there was anything to remove.
        """
        make_folder_durably(self._forgotten)
        write_durably(self._forgotten / experiment, b"")
        folder = self._folder / experiment
        there = folder.is_dir()
        for path in sorted(folder.iterdir()) if there else []:
            path.unlink()
        if there:
            folder.rmdir()
            fsync_folder(self._folder)
        return there

    def experiment(self, name: str) -> Experiment:
        """The configuration of an experiment.

        Raises:
            StateError: the site never took part in it.
        """
        content = self._read(name, _EXPERIMENT) if name in self.experiments() else None
        if content is None:
            raise StateError(
                code="NO_EXPERIMENT",
                message=f"This site took no part in an experiment {name!r}.",
                advice=f"Known: {', '.join(self.experiments()) or 'none yet'}.",
            )
        return parse_experiment(content.decode())

    def experiments(self) -> list[str]:
        """Names of the experiments that this site ever agreed to, sorted."""
        return sorted(path.name for path in self._folder.iterdir()) if self._folder.is_dir() else []

    def learned(self, experiment: str) -> tuple[float, bool]:
        """When the prompt in use was written, in seconds since 1970, and whether it is the final one."""
        final = self._folder / experiment / _FINAL
        path = final if final.exists() else self._folder / experiment / _round_file(self.last_round(experiment))
        return path.stat().st_mtime, path is final

    def _names(self, experiment: str) -> Iterable[str]:
        folder = self._folder / experiment
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def _read(self, experiment: str, name: str) -> bytes | None:
        if self._broken:
            raise _not_durable("an earlier write failed")
        try:
            return (self._folder / experiment / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _damaged(error) from None

    def _write(self, experiment: str, name: str, content: bytes) -> None:
        """Replace a file, durably; its folder is made for this user alone, but not for a forgotten experiment.

        Raises:
            RefusedError: FORGOTTEN.
            StateError: STORAGE_FULL, the next try may succeed; RECORD_NOT_DURABLE, no later one can.
        """
        self.check_kept(experiment)
        if self._broken:
            raise _not_durable("an earlier write failed")
        path = self._folder / experiment / name
        try:
            make_folder_durably(path.parent)
            write_durably(path, content)
        except OSError as error:
            if is_full(error):
                raise StateError(
                    code="STORAGE_FULL",
                    message="The disk of the state folder is full.",
                    advice="Free disk space at the site; nothing was released.",
                ) from None
            self._broken = True
            raise _not_durable(error.strerror or type(error).__name__) from None


class MemoryStore(Store):
    """The same in memory, with the last record alone: for simulations of many sites."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], bytes] = {}

    def check_kept(self, experiment: str) -> None:
        """Nobody leaves a simulation."""

    def write(self, experiment: str, round_number: int, record: Record) -> None:
        """See ``Store``."""
        for earlier in self.rounds(experiment):
            del self._files[experiment, _round_file(earlier)]
        super().write(experiment, round_number, record)

    def _names(self, experiment: str) -> Iterable[str]:
        return [name for of, name in self._files if of == experiment]

    def _read(self, experiment: str, name: str) -> bytes | None:
        return self._files.get((experiment, name))

    def _write(self, experiment: str, name: str, content: bytes) -> None:
        self._files[experiment, name] = content


def _round_file(number: int) -> str:
    return f"round-{number:05d}.safetensors"


def _not_durable(reason: str) -> StateError:
    return StateError(
        code="RECORD_NOT_DURABLE",
        message=f"A round's record could not be written ({reason}).",
        advice="Nothing more is released until the site's administrator has checked the disk and restarted the agent.",
    )


def _damaged(error: Exception) -> StateError:
    return StateError(
        code="RECORD_DAMAGED",
        message=f"A stored round cannot be read ({type(error).__name__}).",
        advice="Restore the state folder from a backup.",
    )
