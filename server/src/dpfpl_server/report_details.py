"""The folded end of report.html: everything needed to repeat the run and to recompute its epsilons."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dpfpl_server.markup import details, paragraph, section, table
from dpfpl_server.report_text import DASH, exact

__all__ = ["details_section"]


def details_section(result: Mapping[str, Any]) -> str:
    """Run, configuration, privacy events and versions, each folded."""
    privacy = result["privacy"]
    events = [
        (e["adversary"], e["mechanism"], exact(e["noise_multiplier"]), exact(e["sample_rate"]), e["steps"])
        for e in privacy["events"]
    ]
    run = {key: result.get(key) for key in ("transport", "node_authentication", "method", "seed", "experiment_digest")}
    return section(
        "Details",
        details("Run", table("This run", ("What", "Value"), [(k, DASH if v is None else v) for k, v in run.items()])),
        details("Configuration", table("experiment.toml, as it ran", ("Key", "Value"), list(_flat(result["config"])))),
        details(
            "Privacy events",
            table(
                "From these anyone can recompute the epsilons",
                ("Adversary", "Mechanism", "Noise multiplier", "Sample rate", "Steps"),
                events,
                numeric=(2, 3, 4),
            ),
            paragraph([f"Noise: {privacy.get('noise', 'not stated')}."], "quiet"),
        ),
        details("Versions", table("Installed packages", ("Package", "Version"), sorted(result["versions"].items()))),
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, DASH if value is None else json.dumps(value, ensure_ascii=False)
