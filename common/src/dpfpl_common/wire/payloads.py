"""What crosses the wire between strategy, ClientApp and agent, as frozen values that are checked when they are built.

Nothing else crosses: the records of Flower and the messages of the agent's RPC are translations of these.
"""

import hashlib
import re
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import DpfplError, PayloadError, PrivacyError, RefusedError
from dpfpl_common.evidence import moment_size
from dpfpl_common.experiment import Experiment
from dpfpl_common.secure import STEPS, SUMS

__all__ = [
    "CHOICES",
    "MAX_TEXT",
    "METRIC_NAMES",
    "AnyRequest",
    "Context",
    "EvaluateRequest",
    "Refusal",
    "SiteReply",
    "SumReply",
    "SumRequest",
    "TrainRequest",
    "check_context",
    "check_matrix",
    "internal_refusal",
    "plain",
    "refusal_of",
    "request_digest",
    "signed_text",
]


Context = npt.NDArray[np.float32]
"""A context array, float32 [num_context, width]."""

METRIC_NAMES = tuple(
    f"{candidate}_{column}"
    for candidate in ("personal", "global", "zero_shot", "prompt", "text", "evidence", "both")
    for column in ("local", "neighbour", "unseen", "all")
)
"""Exact accuracies that a site on public data may report, each in [0, 1].

Of what it uses, of the shared prompt, of the plain text; with evidence also of the personalised prompt, of the plain
text with the site's usual mix of classes, and of class vectors from the plain text and from the shared prompt with it.
On images like its own, on the others', on classes that it has none of, on all classes with equal weight.
"""

MOST_COUNTED = 1e12
"""No noised count is larger."""

CHOICES = ("", "evidence", "text")
"""What the sites' votes may have chosen; nothing without evidence."""

MOST_ATTEMPTS = 1000
"""At one secure sum."""

MAX_COLUMNS = 65_536
"""As wide as a model may be, and more numbers than any gives for one image."""

DIGEST_VERSION = b"2"
"""Raised only where the same request would compute something else: stored releases are found by this digest, also after
an upgrade that changed the wire."""


@dataclass(frozen=True)
class TrainRequest:
    """Take part in one round.

    Attributes:
        experiment: the whole experiment, noise level resolved.
        round: 1-based number of the round.
        global_context: displacement of the shared context from the initial text, float32 [num_context, width].
        evaluate: whether accuracies of the prompt as it arrives are wanted.
        collect: whether the site's noised class sums are wanted.
        pool: what the site votes on, as ``dpfpl_common.evidence.pack_pool`` gives it; None where no vote is wanted.
            Under ``secure`` trust: what it trains on, as its own rows do not carry their whole noise.
    """

    experiment: Experiment
    round: int
    global_context: Context
    evaluate: bool = True
    collect: bool = False
    pool: Context | None = None

    def __post_init__(self) -> None:
        _check_round(self.round, 1, self.experiment.rounds.number)
        check_context(self.global_context, self.experiment.context_shape, "global_context")
        _check_pool(self.experiment, self.pool, moment=False)
        if (self.collect or self.pool is not None) and not self.experiment.uses_evidence:
            raise PayloadError(code="UNEXPECTED_EVIDENCE", message="The experiment is one without evidence.")
        if self.collect and (self.pool is not None or self.experiment.privacy.trust == "secure"):
            raise PayloadError(code="UNEXPECTED_EVIDENCE", message="A round asks for class sums or for a vote.")
        if self.experiment.privacy.trust == "secure" and self.pool is None:
            raise PayloadError(code="MISSING_EVIDENCE", message="Under secure trust a site trains on the summed rows.")


@dataclass(frozen=True)
class EvaluateRequest:
    """Keep the final prompt and what comes with it; after the last round, release scores as well.

    Attributes:
        experiment, round, global_context: as in ``TrainRequest``.
        pool: the last pool; None without evidence.
        chosen: ``evidence`` or ``text``, what the sites' votes chose; empty without evidence.
    """

    experiment: Experiment
    round: int
    global_context: Context
    pool: Context | None = None
    chosen: str = ""

    def __post_init__(self) -> None:
        _check_round(self.round, 0, self.experiment.rounds.number)
        check_context(self.global_context, self.experiment.context_shape, "global_context")
        _check_pool(self.experiment, self.pool, moment=True)
        if self.chosen not in CHOICES or (self.pool is not None or self.chosen != "") > self.experiment.uses_evidence:
            raise PayloadError(code="UNEXPECTED_EVIDENCE", message=f"chosen is {self.chosen[:20]!r}.")


@dataclass(frozen=True)
class SumRequest:
    """Take one step of a secure sum (``dpfpl_common.secure``), under ``secure`` trust.

    Attributes:
        experiment: the whole experiment, noise level resolved.
        sum: one of ``SUMS``; each is made once.
        attempt: 1-based; masks are new in each.
        step: one of ``STEPS``.
        content: the step's request, which nobody but the agent reads.
        global_context: as in ``EvaluateRequest``; with the step ``masked`` of ``scores`` alone.
        pool: what is voted on and scored; with the step ``masked`` of ``vote`` and ``scores`` alone.
    """

    experiment: Experiment
    sum: str
    attempt: int
    step: str
    content: bytes
    global_context: Context | None = None
    pool: Context | None = None

    def __post_init__(self) -> None:
        if self.experiment.privacy.trust != "secure":
            raise PayloadError(code="UNEXPECTED_SUM", message="The experiment is one without secure trust.")
        if self.sum not in SUMS or self.step not in STEPS or not 1 <= self.attempt <= MOST_ATTEMPTS:
            raise PayloadError(code="UNEXPECTED_SUM", message=f"No such step: {self.sum[:20]!r}, {self.step[:20]!r}.")
        computes = self.step == "masked"
        has = (self.pool is not None, self.global_context is not None)
        if has != (computes and self.sum != "rows", computes and self.sum == "scores"):
            raise PayloadError(code="UNEXPECTED_EVIDENCE", message="A pool or a context where none belongs, or none.")
        _check_pool(self.experiment, self.pool, moment=self.sum == "scores")
        if self.global_context is not None:
            check_context(self.global_context, self.experiment.context_shape, "global_context")

    @property
    def round(self) -> int:
        """Rounds completed before it: none, or all."""
        return self.experiment.rounds.number if self.sum == "scores" else 0


AnyRequest = TrainRequest | EvaluateRequest | SumRequest


@dataclass(frozen=True)
class SumReply:
    """A site's answer to a ``SumRequest``: its step's reply, and its agent's signature as in ``SiteReply``."""

    site: str
    content: bytes
    signature: bytes = b""


@dataclass(frozen=True)
class SiteReply:
    """What leaves a site.

    Attributes:
        site: the site's name.
        round: the round it answers.
        update: the mean over the round's local steps of noised sums of clipped gradients, float32 [num_context, width],
            divided by the public ``sample_rate * nominal_site_size``; under the unit ``site`` the mean of un-noised
            gradients, clipped as a whole, with the site's share of noise; None in the answer to an evaluation.
        metrics: exact accuracies, where the site's data are public, by name; see METRIC_NAMES.
        scores: noised counts of right answers, ``[candidates + 1]`` (``dpfpl_common.privacy.counts``); empty but after
            the last round.
        evidence: noised class sums [classes, feature_size] where they were asked for; where a pool came, in one row
            [1, 1 + k (k + 1) / 2] a noised vote and a noised, packed moment; None elsewhere.
        signature: of the site's agent over the rest (``signed_text``), 64 bytes; empty before it is signed, and in
            simulations.
    """

    site: str
    round: int
    update: Context | None
    metrics: dict[str, float]
    scores: tuple[float, ...] = ()
    signature: bytes = b""
    evidence: Context | None = None

    def __post_init__(self) -> None:
        _check_metrics(self.metrics)
        if not all(type(score) is float and abs(score) < MOST_COUNTED for score in self.scores):
            raise PayloadError(code="BAD_SCORES", message="A score is not a finite number, or beyond 1e12.")
        if type(self.signature) is not bytes or len(self.signature) not in (0, 64):
            raise PayloadError(code="BAD_SIGNATURE", message="The signature must be 64 bytes, or none.")


def check_matrix(array: object, rows: int, name: str) -> None:
    """Refuse anything but a finite, C-ordered float32 matrix with so many rows and at most MAX_COLUMNS columns."""
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype("<f4") or not array.flags.c_contiguous:
        raise PayloadError(code="WRONG_DTYPE", message=f"{name} must be a C-ordered float32 array.")
    if array.ndim != 2 or len(array) != rows or not 0 < array.shape[1] <= MAX_COLUMNS:
        raise PayloadError(code="WRONG_SHAPE", message=f"{name} has shape {array.shape}, expected {rows} rows.")
    if not np.all(np.isfinite(array)):
        raise PayloadError(code="NONFINITE_INPUT", message=f"{name} holds a value that is not finite.")


def _check_pool(experiment: Experiment, pool: Context | None, *, moment: bool) -> None:
    if pool is not None:
        rows = len(experiment.classes) + 1
        if moment and np.ndim(pool) == 2 and len(pool) > rows and experiment.uses_moment:
            rows += moment_size(rows - 1, pool.shape[1] - 2)
        check_matrix(pool, rows, "pool")


def check_context(array: object, shape: tuple[int, int], name: str) -> None:
    """Refuse anything but a finite, C-ordered float32 array of exactly this shape.

    Raises:
        PayloadError: WRONG_DTYPE, WRONG_SHAPE, NONFINITE_INPUT or NORM_TOO_LARGE, naming array and expectation.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype("<f4") or not array.flags.c_contiguous:
        raise PayloadError(code="WRONG_DTYPE", message=f"{name} must be a C-ordered float32 array.")
    if array.shape != shape:
        raise PayloadError(code="WRONG_SHAPE", message=f"{name} has shape {array.shape}, expected {shape}.")
    if not np.all(np.isfinite(array)):
        raise PayloadError(code="NONFINITE_INPUT", message=f"{name} holds a value that is not finite.")
    if float(np.abs(array).max(initial=0.0)) > 1e6:
        raise PayloadError(code="NORM_TOO_LARGE", message=f"{name} holds a value beyond 1e6.")


def _check_metrics(metrics: dict[str, float]) -> None:
    """Refuse unknown names and values that are no accuracies."""
    for name, value in metrics.items():
        if name not in METRIC_NAMES:
            raise PayloadError(code="UNKNOWN_METRIC", message=f"Unknown metric {name[:40]!r}.")
        if not isinstance(value, float) or not 0.0 <= value <= 1.0:
            raise PayloadError(code="BAD_METRIC", message=f"Metric {name} is not an accuracy.")


def request_digest(request: TrainRequest) -> str:
    """sha256 of everything that a round's computation depends on: the same digest may be served the same bytes."""
    parts = _framed(
        DIGEST_VERSION,
        request.experiment.digest().encode(),
        str(request.round).encode(),
        request.global_context.astype("<f4").tobytes(),
        b"1" if request.evaluate else b"0",
        b"1" if request.collect else b"0",
        b"" if request.pool is None else request.pool.astype("<f4").tobytes(),
    )
    return hashlib.sha256(parts).hexdigest()


def _check_round(number: object, low: int, high: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise PayloadError(
            code="BAD_ROUND", message=f"round is {number!r}, expected a whole number from {low} to {high}."
        )


DOMAIN = b"DP-FPL reply of a site, 2"
"""Keeps these signatures apart from any other use of the same key; another number where what is signed changes."""


def signed_text(request: AnyRequest, reply: SiteReply | SumReply) -> bytes:
    """The bytes that a site's agent signs, which tie its reply to one experiment, round or step, kind and site.

    Domain, experiment's digest, what was asked, site and digest of the reply's content; the signature itself is no part
    of it. Operator code runs beside a site's connection and could send anything in the site's name, so the server
    believes only this signature. Ed25519 is deterministic: the same reply always has the same one.
    """
    digest, site = request.experiment.digest().encode(), reply.site.encode()
    if isinstance(reply, SumReply):
        assert isinstance(request, SumRequest)
        asked = (part.encode() for part in (request.sum, str(request.attempt), request.step))
        return _framed(DOMAIN + b", secure sum", digest, *asked, site, hashlib.sha256(reply.content).digest())
    kind = b"train" if isinstance(request, TrainRequest) else b"evaluate"
    return _framed(DOMAIN, digest, str(reply.round).encode(), kind, site, _content_digest(reply))


def _framed(*parts: bytes) -> bytes:
    """Each part preceded by its length: no two different lists have the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _content_digest(reply: SiteReply) -> bytes:
    """sha256 of update, evidence, metrics and scores, as values: however they are encoded on a wire."""
    digest = hashlib.sha256()
    for array in (reply.update, reply.evidence):
        content = b"" if array is None else repr(array.shape).encode() + b" " + array.astype("<f4").tobytes()
        digest.update(_framed(content))
    for name, value in sorted(reply.metrics.items()):
        digest.update(_framed(name.encode()) + struct.pack(">d", value))
    digest.update(struct.pack(f">Q{len(reply.scores)}d", len(reply.scores), *reply.scores))
    return digest.digest()


MAX_TEXT = 500
"""Longest text of a refusal, in characters."""

_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SPEAKS_OF_THE_REQUEST = (RefusedError, PayloadError, PrivacyError)


@dataclass(frozen=True)
class Refusal:
    """Why a site did not do what it was asked.

    Attributes:
        code: stable, upper case.
        rule: the broken rule's name in policy.toml or in the protocol, where there is one.
        message: what the request ran into; empty where words could tell something about the site.
        advice: what to do about it.
    """

    code: str
    rule: str = ""
    message: str = ""
    advice: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.code, str) or not _CODE.fullmatch(self.code):
            raise PayloadError(code="BAD_REFUSAL", message="A refusal's code must be an upper-case word.")
        for name in ("rule", "message", "advice"):
            text = getattr(self, name)
            if not isinstance(text, str) or text != plain(text):
                raise PayloadError(
                    code="BAD_REFUSAL",
                    message=f"A refusal's {name} must be one printable line of {MAX_TEXT} characters.",
                )


def refusal_of(error: DpfplError) -> Refusal:
    """What of an error may leave the site.

    Errors that speak of the request are told whole. The others speak of the site's own files (their text may name an
    image or a path), so of them only the code is told.
    """
    code = error.code if _CODE.fullmatch(error.code) else "REFUSED"
    if isinstance(error, _SPEAKS_OF_THE_REQUEST):
        return Refusal(code, plain(getattr(error, "rule", "")), plain(error.message), plain(error.advice))
    return Refusal(code, advice="Ask the site's administrator: the log of its agent says what is wrong.")


def internal_refusal(incident: str) -> Refusal:
    """The refusal that stands for an unforeseen error; ``incident`` is the opaque id under which the site logged it."""
    return Refusal(
        "INTERNAL",
        "",
        f"An unforeseen error, incident {incident}.",
        "Ask the site's administrator: the log of its agent has the details under this id.",
    )


def plain(text: str) -> str:
    """The text as one line of at most MAX_TEXT printable characters, safe to print and to log."""
    kept = "".join(c if c.isprintable() else " " for c in text[: 2 * MAX_TEXT])
    return kept[:MAX_TEXT].strip()
