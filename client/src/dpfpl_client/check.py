"""``dpfpl-client check``: everything that would stop a site from taking part, before it starts."""

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dpfpl_client.agent.budget import spent as epsilons
from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.policy import load_policy
from dpfpl_client.agent.registry import Registry
from dpfpl_client.agent.signing import load_signing_key
from dpfpl_client.data import list_classes, load_site_data
from dpfpl_client.learning.backbone import load_backbone
from dpfpl_client.site_settings import SiteSettings
from dpfpl_common.accounting import json_epsilon
from dpfpl_common.errors import DpfplError, StateError

__all__ = ["CheckReport", "check_site"]


@dataclass
class CheckReport:
    """What was found; ``errors`` stop the site, ``warnings`` do not."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def check_site(settings: SiteSettings, *, connect: bool = True) -> CheckReport:
    """Look at data, model, policy, ledger, kit and connection; nothing is sent but a connection attempt."""
    report = CheckReport(facts={"site": settings.name})
    parts: list[Callable[[SiteSettings, CheckReport], None]] = [_data, _model, _policy_and_ledger]
    if settings.server.address:
        parts += [_kit, *([_connection] if connect else [])]
    else:
        report.warnings.append("site.toml names no server; the site can only be checked and used alone.")
    for part in parts:
        try:
            part(settings, report)
        except DpfplError as error:
            report.errors.append(str(error))
    return report


def _data(settings: SiteSettings, report: CheckReport) -> None:
    classes = list_classes(settings.data)
    data = load_site_data(settings.data, classes)
    train = Counter(record.label for record in data.train)
    test = Counter(record.label for record in data.test)
    report.facts["images"] = {name: {"train": train[name], "test": test[name]} for name in data.classes}
    report.facts["training_images"] = len(data.train)
    for problem in data.problems:
        (report.errors if problem.severity == "error" else report.warnings).append(
            f"{problem.message} [{problem.code}]"
        )
    if not data.test:
        report.warnings.append("There is no test image: accuracy at this site cannot be measured.")


def _model(settings: SiteSettings, report: CheckReport) -> None:
    backbone = load_backbone(settings.model, offline=settings.offline)
    report.facts["model"] = {"id": settings.model, "width": backbone.width, "fingerprint": backbone.fingerprint}


def _policy_and_ledger(settings: SiteSettings, report: CheckReport) -> None:
    policy = load_policy(settings.path(settings.policy))
    report.facts["policy"] = {
        "max_epsilon_per_experiment": policy.max_epsilon_per_experiment,
        "max_epsilon_lifetime": policy.max_epsilon_lifetime,
        "trust": list(policy.trust),
        "metrics": policy.metrics,
    }
    path = settings.state_folder / "ledger.sqlite"
    spent = 0.0
    if path.exists():
        ledger = Ledger(path, Registry(settings.registry_folder), observe=True)
        paid = epsilons(ledger, policy.delta)
        spent = max(value for adversary, value in paid.items() if adversary != "operator")
        ledger.close()
    report.facts["spent_epsilon"] = json_epsilon(spent)
    if spent >= policy.max_epsilon_lifetime:
        report.errors.append("The privacy budget of these data is used up. [BUDGET_EXHAUSTED]")


def _kit(settings: SiteSettings, report: CheckReport) -> None:
    for name in (settings.server.ca_certificate, settings.server.node_key):
        path = settings.path(name)
        if not path.is_file():
            raise StateError(
                code="KIT_INCOMPLETE", message=f"{path} is missing.", advice="Ask the operator for a new kit."
            )
        if path.suffix == ".key" and path.stat().st_mode & 0o077:
            report.warnings.append(f"{path} can be read by others: chmod 600 {path}")
    load_signing_key(settings.path(settings.agent.key))


def _connection(settings: SiteSettings, report: CheckReport) -> None:
    host, _, port = settings.server.address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            report.facts["server"] = f"{settings.server.address} answers"
    except (OSError, ValueError) as error:
        report.warnings.append(
            f"The server {settings.server.address} does not answer now ({error}). The site keeps trying once started."
        )
