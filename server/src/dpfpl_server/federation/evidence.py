"""What a run knows so far: the state after a round, and what the sites' noised class sums and votes say together."""

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import PayloadError
from dpfpl_common.evidence import (
    Pool,
    evidence_wins,
    found_classes,
    moment_size,
    pack_pool,
    pool_rows,
    summed_pool,
    unpack_moment,
    vote_threshold,
)
from dpfpl_common.experiment import Experiment
from dpfpl_common.optimizer import OptimizerState
from dpfpl_common.privacy_plan import class_sums_multiplier, share_stddev, vote_multiplier
from dpfpl_common.wire.payloads import Context, EvaluateRequest, TrainRequest

__all__ = ["NOTHING_FOUND", "Checkpoint", "Evidence", "Summed", "check_rows"]

NOTHING_FOUND = (
    "No class of any site stands out of the noise at this epsilon: the federation gained nothing. Use a larger "
    "epsilon, more images a site, or more sites."
)


@dataclass(frozen=True)
class Summed:
    """A secure sum: all that the server learns of what the sites added.

    Attributes:
        values: float64, one dimension.
        sites: whose part is in it.
    """

    values: npt.NDArray[np.float64]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """What has arrived so far. A site that comes later adds its rows; nobody else releases anything for that.

    Attributes:
        rows: noised class sums, float32 [classes, feature_size], by site.
        votes: noised votes and behind each the packed moment, float32 [1 + k (k + 1) / 2], by site.
        sums: under ``secure`` trust instead of both: what was summed in secret, by its name.
    """

    rows: Mapping[str, Context] = field(default_factory=dict)
    votes: Mapping[str, Context] = field(default_factory=dict)
    sums: Mapping[str, Summed] = field(default_factory=dict)

    def with_replies(self, replies: Mapping[str, Context], request_of: Mapping[str, TrainRequest]) -> "Evidence":
        """With what a round brought: class sums of the sites that were asked for them, votes of the others."""
        rows = {site: array for site, array in replies.items() if request_of[site].collect}
        votes = {site: array[0] for site, array in replies.items() if not request_of[site].collect}
        return Evidence({**self.rows, **rows}, {**self.votes, **votes})

    def without(self, site: str) -> "Evidence":
        """As if the site, which left for good, had never been there, but for what others voted on meanwhile."""
        return Evidence(
            {name: rows for name, rows in self.rows.items() if name != site},
            {name: vote for name, vote in self.votes.items() if name != site},
        )

    def ask(self, request: TrainRequest, site: str) -> TrainRequest:
        """The round's request to one site: with its class sums where they are missing, its vote where that is."""
        experiment = request.experiment
        if not experiment.uses_evidence or experiment.privacy.trust == "secure":
            return request
        if site not in self.rows:
            return TrainRequest(experiment, request.round, request.global_context, request.evaluate, collect=True)
        if site in self.votes or site not in self._weights(experiment):
            return request
        packed = self.packed(experiment, site, moment=False)
        return TrainRequest(experiment, request.round, request.global_context, request.evaluate, pool=packed)

    def ask_last(self, request: EvaluateRequest, site: str) -> EvaluateRequest:
        """The final request to one site: with the pool and what the votes chose."""
        experiment = request.experiment
        if not experiment.uses_evidence or not self._weights(experiment):
            return request
        packed, chosen = self.packed(experiment, site), self.chosen(experiment)
        return EvaluateRequest(experiment, request.round, request.global_context, packed, chosen)

    def packed(self, experiment: Experiment, site: str, *, moment: bool = True) -> Context:
        """The pool with the site's weights, 0 where it has no part in it, and with the moment, if it is there."""
        pool, weights = self._pooled(experiment)
        if moment:
            pool = self._with_moment(pool, experiment)
        return pack_pool(pool, weights.get(site, np.zeros(len(pool.rows))))

    def chosen(self, experiment: Experiment) -> str:
        """``evidence`` or ``text``: what the votes chose, the text where no class is found; empty without evidence."""
        if not experiment.uses_evidence:
            return ""
        pool, weights = self._pooled(experiment)
        images, noises = self._voters(experiment)
        wins = evidence_wins(self._votes(), images, _vote_noise(experiment), noises)
        return "evidence" if wins and weights and found_classes(pool).any() else "text"

    def facts(self, experiment: Experiment) -> dict[str, Any]:
        """What can be told of it, ready for JSON; all of it made from noised values."""
        pool, weights = self._pooled(experiment)
        found = int(found_classes(pool).sum())
        images, noises = self._voters(experiment)
        packed = pack_pool(self._with_moment(pool, experiment), np.zeros(len(pool.rows)))
        return {
            "version": hashlib.sha256(packed.tobytes()).hexdigest()[:12],
            "sites": sorted(weights),
            "classes_found": found,
            "classes": len(pool.rows),
            "votes": round(self._votes(), 3),
            "votes_needed": round(vote_threshold(images, _vote_noise(experiment), noises), 3),
            "voters": noises,
            "warning": "" if found else NOTHING_FOUND,
        }

    def _voters(self, experiment: Experiment) -> tuple[float, int]:
        """Nominal number of images that voted, and how many noises their total holds."""
        voters = len(self.sums["vote"].sites) if "vote" in self.sums else len(self.votes)
        return float(experiment.privacy.nominal_site_size * voters), voters

    def _votes(self) -> float:
        told = [self.sums["vote"].values] if "vote" in self.sums else self.votes.values()
        return sum(float(row[0]) for row in told)

    def _with_moment(self, pool: Pool, experiment: Experiment) -> Pool:
        """With the sum of all moments of the pool's width. Those of sites that voted on an earlier pool are about
        directions a little different from those that the pool gives now (docs/explanation/evidence.md).
        """
        k, summed = moment_size(*pool.rows.shape), self.sums.get("vote")
        told = list(self.votes.values()) if summed is None else [summed.values]
        moments = [row[1:].astype(np.float64) for row in told if len(row) == 1 + k * (k + 1) // 2]
        if not moments or not experiment.uses_moment:
            return pool
        noises = len(moments) if summed is None else len(summed.sites)
        moment, variance = unpack_moment(np.sum(moments, axis=0)), noises * _vote_noise(experiment) ** 2
        return replace(pool, moment=moment, moment_variance=variance)

    def _weights(self, experiment: Experiment) -> Mapping[str, Any]:
        return self._pooled(experiment)[1]

    def _pooled(self, experiment: Experiment) -> tuple[Pool, dict[str, Any]]:
        if "rows" in self.sums:
            return self._summed_pool(len(experiment.classes), share_stddev(experiment, "rows"))
        return self._pool_at(class_sums_multiplier(experiment))

    @functools.cache  # noqa: B019  as ``_pool_at``
    def _summed_pool(self, classes: int, noise_multiplier: float) -> tuple[Pool, dict[str, Any]]:
        """The pool of a secure sum, with the same weights for every site in it."""
        summed = self.sums["rows"]
        pool = summed_pool(summed.values.reshape(classes, -1), noise_multiplier, len(summed.sites))
        return pool, dict.fromkeys(summed.sites, np.ones(classes))

    @functools.cache  # noqa: B019  one entry for one experiment; gone with the evidence
    def _pool_at(self, noise_multiplier: float) -> tuple[Pool, dict[str, Any]]:
        """The pool of all rows of the usual width, and the weights [classes] of each site in it."""
        widths = Counter(rows.shape[1] for rows in self.rows.values())
        if not widths:
            return Pool(np.zeros((0, 1)), np.zeros(0), np.zeros(1), 0.0), {}
        usual = widths.most_common(1)[0][0]
        sites = [site for site in sorted(self.rows) if self.rows[site].shape[1] == usual]
        pool, weights = pool_rows(_Doubles([self.rows[site] for site in sites]), noise_multiplier)
        return pool, dict(zip(sites, weights, strict=True))

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a completed round.

    Attributes:
        round: rounds completed.
        global_context: p_G, float32 [num_context, width].
        optimizer: the server's optimizer state for it.
        history: one entry a round, as in result.json's ``rounds``.
        evidence: class sums and votes of the sites so far.
    """

    round: int
    global_context: Context
    optimizer: OptimizerState
    history: tuple[dict[str, Any], ...] = ()
    evidence: Evidence = field(default_factory=Evidence)


class _Doubles(Sequence[Any]):
    """Rows in double precision one site at a time: of a thousand sites all at once they would take 400 MB."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._rows[place].astype(np.float64)


def _vote_noise(experiment: Experiment) -> float:
    """Noise deviation of one site's part of the votes' total, and of each coordinate of its moment."""
    return share_stddev(experiment, "vote") if experiment.privacy.trust == "secure" else vote_multiplier(experiment)


def check_rows(experiment: Experiment, rows: Context) -> None:
    """Refuse class sums, or a vote and its moment, that no honest site could send: larger than images and noise make.

    Raises:
        PayloadError: NORM_TOO_LARGE.
    """
    images = experiment.aggregation.largest_site * experiment.privacy.nominal_site_size
    z = vote_multiplier(experiment) if len(rows) == 1 else class_sums_multiplier(experiment)
    noise = z * (np.sqrt(rows.size) + 8.0)
    if float(np.linalg.norm(rows.astype(np.float64))) > images + noise:
        raise PayloadError(code="NORM_TOO_LARGE", message="The evidence is larger than any honest one.")
