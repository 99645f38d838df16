"""Combinations of privacy settings that no analysis covers, and why: they are refused before anything runs."""

from typing import TYPE_CHECKING

from dpfpl_common.errors import ConfigError

if TYPE_CHECKING:
    from dpfpl_common.experiment import PrivacySettings

__all__ = ["refuse_unsound"]


def refuse_unsound(p: "PrivacySettings", rule: str) -> None:
    """Refuse combinations without a sound analysis, with the reason."""
    reason = _unsound_site_unit(p)
    if reason:
        pass
    elif p.mechanism == "one_shot" and p.trust != "local":
        reason = (
            f"the mechanism one_shot cannot run under {p.trust} trust: what a site sends is trained on its own noised "
            "class sums, which carry their whole noise already; shares of noise have no meaning there"
        )
    elif p.mechanism == "one_shot" and p.accounting == "paper":
        reason = "the paper's formula is about noise at every step; one_shot adds noise once"
    elif p.projection != "none" and p.mechanism != "one_shot":
        reason = (
            f"the projection {p.projection} is one of class sums of image features, which {p.mechanism} does not "
            "release; its gradients are projected by the method's own directions"
        )
    elif p.clipping == "separate" and (p.mechanism == "one_shot" or p.trust == "local"):
        reason = "separate clipping needs several blocks; here only one is released"
    elif rule != "mean" and p.trust != "local":
        reason = (
            f"{rule} is no function of the sum of all messages, so the noise that the sum carries under {p.trust} "
            "trust does not protect it; each message must carry the whole noise"
        )
    if reason:
        raise ConfigError(
            code="NO_SOUND_ANALYSIS",
            message=f"Refused: {reason}.",
            advice="For one_shot, median, trimmed_mean and krum set trust to local; otherwise use clipping joint, "
            "accounting honest and projection none. The unit site needs the mechanism per_step and trust distributed "
            "or, to sample sites, central.",
        )


def _unsound_site_unit(p: "PrivacySettings") -> str:
    """Why the settings around the unit ``site`` have no sound analysis; empty if they have one."""
    if p.unit != "site":
        if p.site_sample_rate < 1:
            return "sampling sites is analysed for the unit site only"
        return ""
    if p.mechanism != "per_step":
        return "one_shot bounds what one image adds to the class sums, not what a whole site adds"
    if p.trust == "local":
        return "under local trust the personal prompt learns from noised steps; a whole update is noised once a round"
    if p.clipping != "joint":
        return "under the unit site one vector is clipped, the whole update; there are no separate blocks"
    if p.accounting != "honest":
        return "the paper's formula is about single examples, not about whole sites"
    if p.site_sample_rate < 1 and p.trust != "central":
        return (
            "under distributed trust the sampled sites would add a random number of noise shares, which may be fewer "
            "than the analysis counts on"
        )
    return ""
