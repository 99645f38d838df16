"""What a site's data have paid so far, read from the ledger without torch: for views, probes and the doctor."""

from typing import Any

from dpfpl_client.agent.budget import spent
from dpfpl_client.agent.ledger import LEDGER_FILE, Charge, Ledger
from dpfpl_client.agent.policy import load_policy
from dpfpl_client.agent.registry import Registry
from dpfpl_client.site_settings import SiteSettings
from dpfpl_common.accounting import json_epsilon
from dpfpl_common.errors import StateError

__all__ = ["observed_ledger", "summarise", "towards_recipients"]


def summarise(settings: SiteSettings) -> dict[str, Any]:
    """Charges by experiment, the epsilons of each, and the sums over the data's lifetime against the caps.

    ``epsilon`` is what the caps of a prompt's recipient are about.
    """
    policy, ledger = load_policy(settings.path(settings.policy)), observed_ledger(settings)
    by_name: dict[str, list[Charge]] = {}
    for charge in ledger.charges():
        by_name.setdefault(charge.experiment, []).append(charge)
    experiments = []
    for name, own in sorted(by_name.items()):
        paid = spent(ledger, policy.delta, name)
        experiments.append(
            {
                "experiment": name or "(before an old ledger was accepted)",
                "rounds": len({charge.round for charge in own}),
                "charges": len(own),
                "released": sum(bool(charge.release_digest) for charge in own),
                "assumed": sum(not charge.request_digest for charge in own),
                "first": min(charge.at for charge in own),
                "last": max(charge.at for charge in own),
                "epsilon": json_epsilon(towards_recipients(paid)),
                "epsilons": {adversary: json_epsilon(value) for adversary, value in paid.items()},
            }
        )
    paid = spent(ledger, policy.delta)
    caps = {"epsilon": policy.max_epsilon_lifetime, "operator": policy.max_epsilon_operator_lifetime}
    have = {"epsilon": towards_recipients(paid), "operator": paid["operator"]}
    ledger.close()
    return {
        "experiments": experiments,
        "spent_epsilon": json_epsilon(have["epsilon"]),
        "spent_epsilons": {adversary: json_epsilon(value) for adversary, value in paid.items()},
        "max_epsilon_lifetime": policy.max_epsilon_lifetime,
        "max_epsilon_operator_lifetime": policy.max_epsilon_operator_lifetime,
        "left_epsilon": max(0.0, caps["epsilon"] - have["epsilon"]),
        "left_epsilon_operator": max(0.0, caps["operator"] - have["operator"]),
        "delta": policy.delta,
        "records": ledger.records,
        "ledger": ledger.identity,
    }


def towards_recipients(paid: dict[str, float]) -> float:
    """The larger of the epsilons that the caps of a prompt's recipient are about."""
    return max(value for adversary, value in paid.items() if adversary != "operator")


def observed_ledger(settings: SiteSettings) -> Ledger:
    """The ledger, to look at only.

    Raises:
        StateError: NO_LEDGER, nothing was ever charged; or what ``Ledger`` raises.
    """
    path = settings.state_folder / LEDGER_FILE
    if not path.exists():
        raise StateError(
            code="NO_LEDGER", message="Nothing was ever charged at this site.", advice="It fills with the first round."
        )
    return Ledger(path, Registry(settings.registry_folder), observe=True)
