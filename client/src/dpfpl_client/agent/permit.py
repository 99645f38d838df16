"""Which experiments a policy lets pass."""

from dpfpl_client.agent.policy import Policy
from dpfpl_common.accounting import exceeds
from dpfpl_common.errors import RefusedError
from dpfpl_common.experiment import Experiment
from dpfpl_common.trust import capped_event, planned_events

__all__ = ["permit"]


def permit(policy: Policy, experiment: Experiment, approved: bool | None = None) -> None:
    """Let an experiment pass, or refuse it; decided from the experiment and the policy alone, never from the data.

    Args:
        policy: the rules.
        experiment: what is asked for.
        approved: whether it is approved; None to ask the policy alone.

    Raises:
        RefusedError: with the code and name of the rule that it breaks.
    """
    privacy = experiment.privacy
    if approved is None:
        approved = policy.approves(experiment)
    if not approved:
        raise _refusal(
            "EXPERIMENT_NOT_APPROVED",
            "experiments",
            "Ask the site's administrator to approve it: dpfpl-client approve --pending.",
        )
    if privacy.trust not in policy.trust:
        raise _refusal("TRUST_NOT_ALLOWED", "trust", f"Allowed: {', '.join(policy.trust)}.")
    if privacy.unit not in policy.units:
        raise _refusal("UNIT_NOT_ALLOWED", "units", f"Allowed: {', '.join(policy.units)}.")
    if privacy.mechanism not in policy.mechanisms:
        raise _refusal("MECHANISM_NOT_ALLOWED", "mechanisms", f"Allowed: {', '.join(policy.mechanisms)}.")
    if privacy.accounting != "honest":
        raise _refusal(
            "ACCOUNTING_NOT_HONEST", "accounting", "Only honest accounting is served; paper is for simulations."
        )
    if experiment.prompt.method not in policy.methods:
        raise _refusal("METHOD_NOT_ALLOWED", "methods", f"Allowed: {', '.join(policy.methods)}.")
    if experiment.rounds.number > policy.max_rounds:
        raise _refusal("TOO_MANY_ROUNDS", "max_rounds", f"At most {policy.max_rounds} rounds.")
    if max(privacy.clipping_norm, privacy.factor_norm) > policy.max_clipping_norm:
        raise _refusal("CLIPPING_NORM_TOO_LARGE", "max_clipping_norm", f"At most {policy.max_clipping_norm:g}.")
    if (privacy.noise_multiplier or 0.0) < policy.min_noise_multiplier:
        raise _refusal("TOO_LITTLE_NOISE", "min_noise_multiplier", f"At least {policy.min_noise_multiplier:g}.")
    if privacy.target_delta > policy.delta:
        raise _refusal("DELTA_TOO_LARGE", "delta", f"At most {policy.delta:g}.")
    events = {event.adversary: event for event in planned_events(experiment)}
    if privacy.trust != "central" and exceeds([events["operator"]], policy.delta, policy.max_epsilon_operator):
        raise _refusal(
            "OPERATOR_EPSILON_OVER_CAP",
            "max_epsilon_operator",
            f"Towards the operator at most {policy.max_epsilon_operator:g}: fewer sites, or trust local.",
        )
    if exceeds([capped_event(experiment)], policy.delta, policy.max_epsilon_per_experiment):
        raise _refusal(
            "EPSILON_OVER_CAP",
            "max_epsilon_per_experiment",
            f"It would cost more; at most epsilon {policy.max_epsilon_per_experiment:g}.",
        )


def _refusal(code: str, rule: str, advice: str) -> RefusedError:
    return RefusedError(code=code, message=f"The site's policy forbids this experiment (rule {rule}).", advice=advice)
