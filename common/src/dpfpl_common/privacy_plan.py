"""From an experiment to its privacy: who adds which noise, what each adversary is held to, how much noise is needed."""

import math

from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import (
    HELD_BACK,
    LARGEST_MULTIPLIER,
    LARGEST_TARGET,
    SMALLEST_TARGET,
    PrivacyEvent,
    calibrate_noise_multiplier,
    epsilon,
    refuse_inexact,
)
from dpfpl_common.privacy.counts import count_noise_stddev
from dpfpl_common.privacy.one_shot import shared_out

__all__ = [
    "ADVERSARIES",
    "BLOCKS",
    "NOISED_COUNTS",
    "UNIT_NAMES",
    "WHOLE_UPDATE",
    "assumption",
    "capped_event",
    "class_sums_multiplier",
    "largest_signal",
    "noise_share",
    "paper_noise_multiplier",
    "planned_events",
    "planned_score_events",
    "resolve_noise",
    "score_noise_multiplier",
    "scored",
    "separate_blocks",
    "server_noise_stddev",
    "share_stddev",
    "site_noise_stddev",
    "vote_multiplier",
]


# Symbols: N sites, D tolerated drop-outs, K tolerated colluders, z noise multiplier, C clipping norm of the global
# block.
#
# - ``distributed`` (default of ``per_step``): each site adds variance ``z^2 C^2 / H`` to what it sends, ``H = max(1,
#   N - D - max(1, K))``: a site knows its own share, so at least one does not count.
#   A round is aggregated only with at least N - D replies, so even with K of them pooling their knowledge, the noise
#   that remains unknown to them has at least variance ``H z^2 C^2 / H = z^2 C^2``. The operator, who sees single
#   messages, is held only to the multiplier ``z / sqrt(H)`` of one message: no secure aggregation is claimed.
# - ``secure`` (``one_shot`` only): the same shares, but the operator learns the sum alone, so it too is held to z. That
#   is computational and about an operator that follows the protocol: docs/explanation/secure-aggregation.md.
# - ``central``: sites send clipped, un-noised sums and the server adds variance ``z^2 C^2``. The paper's setting; the
#   operator sees the data's sums: no finite epsilon towards it.
# - ``local``: each message carries the whole variance ``z^2 C^2``; the site derives its personal gradient from the same
#   noised message, so nothing composes.

WHOLE_UPDATE = "whole_update"
"""The events' mechanism under the unit ``site``; tells the units apart in a ledger."""

UNIT_NAMES = {
    "example": "one training example of one site, added or removed",
    "site": "one site's whole data set, added or removed",
}
"""The neighbouring relation of each unit, in words."""

ADVERSARIES = {
    "prompt_recipient": "anyone who receives a site's personalised prompt",
    "other_site": "another site of the federation, or anyone who receives its prompt",
    "operator": "the operator of the server, who sees every message of the site",
}
"""Stable keys of the three adversaries, and who they are."""


def assumption(experiment: Experiment) -> str:
    """What the epsilons rest on besides their delta, to be said wherever they are; empty where there is nothing.

    Whether a site pinned its peers' keys only that site knows, so nothing is claimed here from it.
    """
    if experiment.privacy.trust != "secure":
        return ""
    colluders = experiment.privacy.tolerated_colluders
    return (
        "computational, towards the operator for one that is honest but curious: it follows the protocol of secure "
        f"aggregation, keeps what it sees and pools it with at most {colluders} of the sites. An operator that invents "
        "sites could read a single one, unless that site pinned the keys of the others"
    )


BLOCKS = {"dpfpl": 3, "dplora": 3, "fedotp": 2, "fedpgp": 3, "promptfl": 1}
"""Released blocks of one step by method: towards the global context, and towards the personal one or its factors."""


def noise_share(experiment: Experiment) -> float:
    """Of a release's noise deviation, what one site adds to it: ``1 / sqrt(H)`` under ``secure``, where only a sum over
    sites is seen, else 1.
    """
    return 1.0 / math.sqrt(experiment.honest_shares) if experiment.privacy.trust == "secure" else 1.0


def site_noise_stddev(experiment: Experiment) -> float:
    """Standard deviation that a site adds to what it sends; 0 where the server adds the noise.

    To the clipped sum of every step, and under the unit ``site`` to the clipped update of a round.
    """
    stddev = _multiplier(experiment) * experiment.privacy.clipping_norm
    match experiment.privacy.trust:
        case "central":
            return 0.0
        case "local":
            return stddev
        case _:
            return stddev / math.sqrt(experiment.honest_shares)


def server_noise_stddev(experiment: Experiment) -> float:
    """Standard deviation that the server adds to the sum over all sites: only under ``central``.

    Per step; under the unit ``site`` per round.
    """
    if experiment.privacy.trust != "central":
        return 0.0
    return _multiplier(experiment) * experiment.privacy.clipping_norm


def largest_signal(experiment: Experiment) -> float:
    """Norm that what an honest site sends does not exceed, its noise aside.

    ``per_step``: the clipped sums, at most C an image over the divisor, for a site of ``aggregation.largest_site``
    times the nominal size. ``one_shot``: gradients that nobody clips, as they see noised sums only; a site holds them
    to the same length, so that the server can tell an honest update from an absurd one. Under the unit ``site``: C.
    """
    privacy = experiment.privacy
    if privacy.unit == "site":
        return privacy.clipping_norm
    return privacy.clipping_norm * experiment.aggregation.largest_site / privacy.sample_rate


def planned_events(experiment: Experiment, steps: int | None = None) -> tuple[PrivacyEvent, ...]:
    """What ``steps`` steps (default: the whole experiment) release of one site's data, to each adversary.

    Under ``one_shot`` there is one release of all the data, at the first step, whatever follows.

    One joint event per step, never one per block: the blocks are clipped jointly and noised in proportion to their
    bounds, so together they are one Gaussian mechanism of multiplier z (docs/explanation/mechanism.md, joint clipping).

    Under the unit ``site`` a round is one release, however many local steps it has.
    """
    if experiment.privacy.unit == "site":
        return _site_unit_events(experiment, steps)
    privacy = experiment.privacy
    z = _multiplier(experiment)
    # Blocks clipped on their own that an adversary does not see steer the personal context all the same, and with it
    # every later shared gradient: they count towards everybody.
    personal_blocks = separate_blocks(experiment) - 1
    joint = z / math.sqrt(1 + personal_blocks)
    shares = experiment.honest_shares + personal_blocks
    operator = {"central": 0.0, "local": z, "secure": z}.get(privacy.trust, z / math.sqrt(shares))
    one_shot = privacy.mechanism == "one_shot"
    count = experiment.total_steps if steps is None else steps
    return tuple(
        PrivacyEvent(
            adversary=adversary,
            mechanism=privacy.mechanism,
            noise_multiplier=multiplier,
            sample_rate=1.0 if one_shot else privacy.sample_rate,
            steps=min(1, count) if one_shot else count,
        )
        for adversary, multiplier in (("prompt_recipient", joint), ("other_site", joint), ("operator", operator))
    )


def _site_unit_events(experiment: Experiment, steps: int | None) -> tuple[PrivacyEvent, ...]:
    """One event a round; unit: one site's whole data set.

    A site's own prompt is trained without noise: towards who receives it nothing is promised. Sampling amplifies only
    towards who does not see which sites take part, which the operator does.
    """
    privacy = experiment.privacy
    z = _multiplier(experiment)
    operator = 0.0 if privacy.trust == "central" else z / math.sqrt(experiment.honest_shares)
    rounds = experiment.rounds.number if steps is None else -(-steps // experiment.rounds.local_steps)
    return tuple(
        PrivacyEvent(adversary, WHOLE_UPDATE, multiplier, sample_rate, rounds)
        for adversary, multiplier, sample_rate in (
            ("prompt_recipient", 0.0, 1.0),
            ("other_site", z, privacy.site_sample_rate),
            ("operator", operator, 1.0),
        )
    )


NOISED_COUNTS = "noised_counts"
"""The mechanism of scores."""


def planned_score_events(experiment: Experiment) -> tuple[PrivacyEvent, ...]:
    """What the release of scores tells each adversary of a held-back example; empty where none is made.

    A site's message carries the whole noise under every trust but ``secure``, where the sum does. Under the unit
    ``site`` no count is bounded by what one site adds, and the personal prompt depends on training examples without
    noise: no scores.
    """
    if experiment.privacy.unit == "site":
        return ()
    z = score_noise_multiplier(experiment)
    return tuple(PrivacyEvent(who, NOISED_COUNTS, z, 1.0, 1, HELD_BACK) for who in ADVERSARIES)


def score_noise_multiplier(experiment: Experiment) -> float:
    """The noise multiplier with which scores cost what the experiment's training releases cost.

    Both parts of a site's examples are then protected alike, and the pair costs what training alone does. 0 where the
    experiment claims no privacy.
    """
    event, delta = capped_event(experiment), experiment.privacy.target_delta
    if event.noise_multiplier <= 0 or event.mechanism == "one_shot":
        return event.noise_multiplier
    cost = epsilon([event], delta)
    if cost < SMALLEST_TARGET:
        return max(LARGEST_MULTIPLIER, event.noise_multiplier)
    return calibrate_noise_multiplier(min(cost, LARGEST_TARGET), delta, 1.0, 1)


def scored(experiment: Experiment) -> tuple[str, ...]:
    """The candidates whose right answers are counted, in this order: a function of the experiment alone.

    The plain text, the shared prompt, the site's own prompt; with evidence also, each with the site's usual mix of
    classes, the plain text, class vectors from the site's own class sums alone, and from all sites' with the plain text
    and with the shared prompt as prior. All are functions of noised releases: the site's exact label shares are none.
    """
    if not experiment.uses_evidence:
        return ("zero_shot", "global", "prompt")
    if experiment.privacy.trust == "secure":  # a site's own rows carry a share of their noise: no head is made of them
        return ("zero_shot", "global", "prompt", "text", "evidence", "both")
    return ("zero_shot", "global", "prompt", "text", "alone", "evidence", "both")


def class_sums_multiplier(experiment: Experiment) -> float:
    """Noise multiplier of the class sums of ``one_shot``: what vote and moment leave of the whole release's.

    All together are one Gaussian mechanism of the experiment's multiplier, which is what is charged, before the first.
    """
    z = _multiplier(experiment)
    return shared_out(z, moment=experiment.uses_moment)[0] if experiment.uses_evidence else z


def vote_multiplier(experiment: Experiment) -> float:
    """Noise multiplier of a site's vote, and of its moment; see :func:`class_sums_multiplier`."""
    return shared_out(_multiplier(experiment), moment=False)[1]


def share_stddev(experiment: Experiment, name: str) -> float:
    """Standard deviation of the noise that one site adds to each coordinate of its part of a secure sum.

    It is ``s / sqrt(H)``, s what the release is charged with: so the integers of H sites that no colluder knows hold
    noise of deviation s, and a sum over S sites ``s sqrt(S / H)``, never less. Sums of discrete Gaussians of 2^36 grid
    steps differ from a discrete Gaussian by less than exp(-10^20) (Kairouz, Liu and Steinke 2021, theorem 1), so the
    accountant's Gaussian stands for them.
    """
    match name:
        case "rows":
            whole = class_sums_multiplier(experiment)
        case "vote":
            whole = vote_multiplier(experiment)
        case _:
            whole = count_noise_stddev(len(scored(experiment)), score_noise_multiplier(experiment))
    return whole * noise_share(experiment)


def capped_event(experiment: Experiment) -> PrivacyEvent:
    """The planned event that ``target_epsilon``, a site's caps and its ledger are about.

    For the recipient of the site's personalised prompt; under the unit ``site``, where that prompt must never leave
    the site, towards another site.
    """
    recipient, other_site, _ = planned_events(experiment)
    return other_site if experiment.privacy.unit == "site" else recipient


def separate_blocks(experiment: Experiment) -> int:
    """Blocks of one step that are clipped on their own: 1 with joint clipping, whatever the method.

    With separate clipping every block b is a Gaussian mechanism of its own with multiplier z_b = z, and together they
    have ``1 / z_eff^2 = sum_b 1 / z_b^2``.
    """
    return BLOCKS[experiment.prompt.method] if experiment.privacy.clipping == "separate" else 1


def _multiplier(experiment: Experiment) -> float:
    noise_multiplier = experiment.privacy.noise_multiplier
    if noise_multiplier is None:
        raise ValueError("The experiment's noise_multiplier is not resolved yet; see resolve_noise.")
    return noise_multiplier


def resolve_noise(experiment: Experiment) -> Experiment:
    """Fill in the noise multiplier that target_epsilon asks for, unless one is given.

    The target holds for the recipient of a site's personalised prompt; under the unit ``site``, with one release a
    round, towards another site. Under ``accounting = "paper"`` the paper's formula is used instead, and the target is
    nominal only.

    Raises:
        PrivacyError: as ``calibrate_noise_multiplier``; a given multiplier is held to the same range.
    """
    given = experiment.privacy.noise_multiplier is not None
    resolved = experiment if given else experiment.with_noise_multiplier(_needed_multiplier(experiment))
    event = capped_event(resolved)
    if event.noise_multiplier > 0:
        refuse_inexact(experiment.privacy.target_delta, event.sample_rate, event.steps)
    return resolved


def _needed_multiplier(experiment: Experiment) -> float:
    privacy = experiment.privacy
    assert privacy.target_epsilon is not None
    epsilon, delta, steps = privacy.target_epsilon, privacy.target_delta, experiment.total_steps
    if privacy.accounting == "paper":
        return paper_noise_multiplier(epsilon, delta, steps)
    if privacy.unit == "site":
        return calibrate_noise_multiplier(epsilon, delta, privacy.site_sample_rate, experiment.rounds.number)
    if privacy.mechanism == "one_shot":
        return calibrate_noise_multiplier(epsilon, delta, 1.0, 1)
    joint = calibrate_noise_multiplier(epsilon, delta, privacy.sample_rate, steps)
    return joint * math.sqrt(separate_blocks(experiment))


def paper_noise_multiplier(nominal_epsilon: float, delta: float, steps: int) -> float:
    """The noise multiplier that the published code uses: ``sqrt(T ln(1 / delta)) / epsilon``.

    It is relative to a sensitivity of C / B for a batch mean, which per-example clipping has and the published code,
    which clips the batch mean itself, has not. The bound behind it ignores sub-sampling and the number of blocks.
    """
    return math.sqrt(steps * math.log(1.0 / delta)) / nominal_epsilon
