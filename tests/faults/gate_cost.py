"""What the gate's durability costs a round of the demo: the same rounds with and without it, one after the other.

Two agents on the demo's data take turns: one on disk with ledger, registry and audit log as deployed, one whose
ledger and store are in memory. Prints medians and the spread: ``python tests/faults/gate_cost.py [ROUNDS [SLOT]]``;
SLOT is the policy's ``reply_slot`` in seconds, next to nothing if not given, so that all of a round's time is seen.
There is no switch for this in the product; an agent is simply built from other parts.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.features import FeatureCache, site_features
from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import DiskStore, MemoryStore
from dpfpl_client.data import DataSettings, list_classes, load_site_data
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.policy import Policy
from dpfpl_common.wire.payloads import TrainRequest


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    slot = float(sys.argv[2]) if len(sys.argv) > 2 else 1e-6
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    data = DataSettings(source="digits", partition="pathological", num_sites=4)
    classes = list_classes(data)
    features = site_features(FeatureCache(None, backbone), load_site_data(data, classes), classes, None)
    experiment = Experiment(
        name="cost",
        classes=classes,
        sites=("site-01", "site-02", "site-03", "site-04"),
        model=ModelSettings(width=backbone.width),
        prompt=PromptSettings(num_context=4, rank=4),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=60.0, nominal_site_size=300),
        rounds=RoundSettings(number=rounds, local_steps=4),
    )
    policy = Policy(("*",), 1e3, 1e3, max_epsilon_operator=1e3, max_epsilon_operator_lifetime=1e3, reply_slot=slot)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        state.mkdir()
        parts = {
            "durable": (
                Ledger(state / "l.sqlite", Registry(Path(folder) / "r")),
                DiskStore(state),
                AuditLog(state / "audit"),
            ),
            "in memory": (Ledger(None), MemoryStore(), None),
        }
        agents = {
            name: SiteAgent("site-01", backbone, features, policy, ledger, store, SystemRandomness(), audit=audit)
            for name, (ledger, store, audit) in parts.items()
        }
        taken: dict[str, list[float]] = {name: [] for name in agents}
        for number in range(1, rounds + 1):
            context = np.full(experiment.context_shape, 1e-3 * number / rounds, "<f4")
            for name in list(agents)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                agents[name].train(TrainRequest(experiment, number, context, evaluate=True))
                taken[name].append(1000 * (time.perf_counter() - began))
    for name, values in taken.items():
        low, middle, high = statistics.quantiles(values[2:], n=4)
        print(f"{name}: median {middle:.1f} ms, quartiles {low:.1f} to {high:.1f}, {len(values) - 2} rounds")
    pairs = [a - b for a, b in zip(taken["durable"][2:], taken["in memory"][2:], strict=True)]
    share = statistics.median(pairs) / statistics.median(taken["in memory"][2:])
    low, _, high = statistics.quantiles(pairs, n=4)
    print(
        f"the gate adds {statistics.median(pairs):.1f} ms to a round of a site, {100 * share:.1f} %; "
        f"quartiles of the {len(pairs)} pairs {low:.1f} to {high:.1f} ms"
    )


if __name__ == "__main__":
    main()
