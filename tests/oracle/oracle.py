"""Eight small seeded federations whose every byte is recorded, so that a refactoring can show that it changed nothing.

    python tests/oracle/oracle.py            # run them and compare with hashes.json; exit code 1 if anything differs
    python tests/oracle/oracle.py --write    # record anew

Record anew only for an intended change, together with a line in ``README.md`` here: which commit, why, which hashes.

For each simulation ``hashes.json`` keeps two things:

- ``bytes``: sha256 of the exact values, part by part (see ``parts``). On one machine a refactoring must reproduce them
  all. Float sums may differ in the last digit between processors, so the test does not compare them.
- ``facts``: what does not depend on the processor (charges, events), exactly, and two numbers for each array, which
  the test compares to four digits.

Nothing in here is a function of anything but the seed: noise, samples and factor starts come from
``SeededRandomness``; times, nonces and message ids are left out.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dpfpl_bench.demo.drawn_questions import drawn_sites
from dpfpl_bench.demo.scenarios import the_same_sites_in_process
from dpfpl_bench.simulation.in_process import InProcessGrid, SimulatedSite, prepare_sites
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import MemoryStore
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    OptimizerSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
)
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy.noise import discrete_gaussian
from dpfpl_common.privacy_plan import planned_events, resolve_noise
from dpfpl_server.federation.rounds import DPFPLStrategy

KEPT = Path(__file__).with_name("hashes.json")
SEED = 20_261_129
DELTA = 1e-5
SIMULATIONS: dict[str, Callable[[], dict[str, object]]] = {}
"""What runs a simulation, by its name."""


class RecordingStore(MemoryStore):
    """Keeps every round's record."""

    def __init__(self) -> None:
        super().__init__()
        self.all = {}

    def write(self, experiment, round_number, record):
        super().write(experiment, round_number, record)
        self.all[round_number] = record


@cache
def digits():
    """The embedded encoder and four sites with 40 training and 20 test digits each, no class at two sites."""
    with tempfile.TemporaryDirectory() as folder:
        backbone, sites = the_same_sites_in_process(Path(folder))

    def few(features):
        train, test, other = features.train, features.test, features.neighbour_test
        sizes = zip((train, test, other), (40, 20, 20), strict=True)
        return SiteFeatures(*(images.take(np.arange(count)) for images, count in sizes), features.classes)

    return backbone, [SimulatedSite(site.name, few(site.features), site.num_classes) for site in sites]


@cache
def questions():
    """The embedded generative model and two sites with 16 questions and 4 test questions each."""
    backbone = load_backbone("embedded-vlm")
    drawn = drawn_sites(2, 16, 4, seed=SEED)
    return backbone, prepare_sites(drawn, (), FeatureCache(None, backbone), ("clinic-a", "shop-b"))


def experiment(
    data, name, *, method="dpfpl", descent="adam", evidence=False, rounds=3, local_steps=2, task=None, **privacy
):
    """An experiment on the data, with every setting that matters said: a new default must change nothing here."""
    backbone, sites = data
    usual = {
        "unit": "example",
        "mechanism": "per_step",
        "trust": "distributed",
        "target_delta": DELTA,
        "clipping_norm": 0.1,
        "factor_clipping_norm": 0.05,
        "projection": "none",
        "clipping": "joint",
        "sample_rate": 0.5,
        "site_sample_rate": 1.0,
        "nominal_site_size": 40,
        "tolerated_dropouts": 0,
        "tolerated_colluders": 1,
    }
    if "target_epsilon" not in privacy:
        usual["noise_multiplier"] = 1.25
    return resolve_noise(
        Experiment(
            name=name.replace("/", "-"),
            classes=sites[0].features.classes,
            sites=tuple(site.name for site in sites),
            model=ModelSettings(width=backbone.width),
            prompt=PromptSettings(method=method, num_context=3, rank=2, init_text="a photo of", evidence=evidence),
            optimizer=OptimizerSettings(name=descent, global_learning_rate=0.02, personal_learning_rate=0.03),
            privacy=PrivacySettings(**usual | privacy),
            rounds=RoundSettings(number=rounds, local_steps=local_steps, evaluate_every=1),
            **({} if task is None else {"task": task}),
        )
    )


def simulation(data, name, **settings):
    """Put a simulation on the list."""
    SIMULATIONS[name] = lambda: simulated(*data(), experiment(data(), name, **settings))


simulation(digits, "per_step/central", trust="central")
simulation(digits, "per_step/distributed", trust="distributed", method="fedpgp", clipping="separate")
simulation(digits, "per_step/local", trust="local", method="dplora")
# Not Adam: it divides by what gradients were before, so the last digits, in which processors differ, become the third.
simulation(digits, "one_shot/local", descent="sgd", mechanism="one_shot", trust="local", target_epsilon=4.0)
simulation(
    digits, "one_shot/text", descent="sgd", mechanism="one_shot", trust="local", projection="text", method="fedotp"
)
simulation(
    digits,
    "one_shot/evidence",
    descent="sgd",
    mechanism="one_shot",
    trust="local",
    target_epsilon=8.0,
    evidence=True,
    rounds=2,
)
simulation(digits, "site/central", unit="site", trust="central", site_sample_rate=0.7, method="promptfl")
simulation(questions, "per_step/questions", nominal_site_size=16, rounds=2, task=TaskSettings("vqa", "", 4))


def simulated(backbone, sites, experiment):
    """Run the experiment through the strategy and the agents that are deployed; its ``bytes`` and ``facts``."""
    randomness, server = SeededRandomness(SEED), SeededRandomness(SEED).for_round("server", 0)
    ledgers = {site.name: Ledger(None) for site in sites}
    stores = {site.name: RecordingStore() for site in sites}
    agents = {
        site.name: SiteAgent(
            site.name, backbone, site.features, None, ledgers[site.name], stores[site.name], randomness
        )
        for site in sites
    }
    grid = InProcessGrid(agents)
    shared = []
    strategy = DPFPLStrategy(
        experiment,
        grid.nodes,
        keys=None,
        noise=server.noise,
        sampler=server.sampler,
        on_checkpoint=lambda checkpoint: shared.append(checkpoint.global_context),
    )
    strategy.run(grid)
    arrays = dict(parts(shared, stores))
    planned = planned_events(experiment)
    facts = {
        "planned_events": said(planned),
        "charges": {site: charges(ledger) for site, ledger in ledgers.items()},
        "epsilon": {site: spent(ledger) for site, ledger in ledgers.items()},
        "arrays": {name: [summary(array) for array in found] for name, found in arrays.items()},
    }
    metrics = [strategy.final_metrics, *(entry["metrics"] for entry in strategy.checkpoint.history)]
    digests = [experiment.digest(), *(asked(ledger) for ledger in ledgers.values())]
    charged = [[asdict(event) for charge in ledger.charges() for event in charge.events] for ledger in ledgers.values()]
    events = [asdict(event) for event in planned]
    exact = {name: sha256(*(array.tobytes() for array in found)) for name, found in arrays.items()}
    texts = {"metrics": metrics, "digests": digests, "events": events, "ledger": [facts["charges"], charged]}
    return {"bytes": exact | {name: sha256(as_json(value)) for name, value in texts.items()}, "facts": facts}


def parts(shared, stores) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Arrays by what they are: the server's by round, the sites' by site and round."""
    yield "global_context", shared
    records = [record for site in sorted(stores) for _, record in sorted(stores[site].all.items())]
    yield "received", [record.global_context for record in records]
    yield "sent", [record.reply.update for record in records]
    if records[0].reply.evidence is not None:
        yield "evidence", [record.reply.evidence for record in records if record.reply.evidence is not None]
    yield "personal_context", [record.state.context for record in records]
    yield "optimizer", [moment for record in records for moment in moments(record.state.optimizer)]
    for name in ("class_sums", "parameters"):
        if getattr(records[-1].state, name) is not None:
            yield name, [getattr(record.state, name) for record in records]


def moments(optimizer) -> tuple[np.ndarray, np.ndarray]:
    return optimizer.first, optimizer.second


def charges(ledger):
    """What a ledger charged, without times and without digests of what was asked and of what left."""
    entries = [
        f"record {charge.sequence} round {charge.round} {'committed' if charge.release_digest else 'reserved'}: "
        + "; ".join(said(charge.events))
        for charge in ledger.charges()
    ]
    return [*entries, f"{ledger.records} records"]


def said(events):
    """Events in words, their numbers to six digits."""
    return [f"{e.adversary} {e.mechanism} z={e.noise_multiplier:.6g} q={e.sample_rate:.6g} x{e.steps}" for e in events]


def asked(ledger):
    """Digests of the requests: they change with what the experiment's canonical JSON says."""
    return [charge.request_digest for charge in ledger.charges()]


def spent(ledger):
    """Epsilon of all charges, towards each adversary, to four digits."""
    adversaries = ("prompt_recipient", "other_site", "operator")
    return {who: f"{epsilon(ledger.events(adversary=who), DELTA):.4g}" for who in adversaries}


def summary(array):
    """Two numbers that say to four digits what is in an array: its norm, and a projection that sees the order."""
    values = np.asarray(array, dtype=np.float64).ravel()
    return [float(f"{value:.6g}") for value in (np.linalg.norm(values), values @ np.cos(np.arange(values.size)))]


def exact_noise():
    """The noise of deployed sites, from bytes that are given: a thousand integers, in units of 2**-36 deviations."""
    integers = discrete_gaussian(1000, np.random.default_rng(SEED).bytes)
    facts = {"first": [int(value) for value in integers[:5]], "arrays": {"all": [summary(integers)]}}
    return {"bytes": {"integers": sha256(integers.tobytes())}, "facts": facts}


SIMULATIONS["exact noise"] = exact_noise


def sha256(*pieces: bytes) -> str:
    """Over lengths and contents, so that no two lists of pieces read alike."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big") + piece)
    return digest.hexdigest()


def readable(value, depth: int = 0) -> str:
    """JSON with one line for each leaf of the first four levels."""
    if depth == 4 or not isinstance(value, dict):
        return json.dumps(value)
    inner = (f"{' ' * (depth + 1)}{json.dumps(key)}: {readable(value[key], depth + 1)}" for key in sorted(value))
    return "{\n" + ",\n".join(inner) + "\n" + " " * depth + "}"


def as_json(value) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def differences(kept, found, exactly: bool) -> list[str]:
    """What is not as it was kept, one line each; ``exactly`` compares the bytes' hashes too."""
    told = [f"{name}: only in one of the two" for name in sorted(set(kept) ^ set(found))]
    for name in sorted(set(kept) & set(found)):
        if exactly:
            before, after = kept[name]["bytes"], found[name]["bytes"]
            parts = sorted(part for part in set(before) | set(after) if before.get(part) != after.get(part))
            told += [f"{name}: bytes of {part}" for part in parts]
        before, after = dict(kept[name]["facts"]), dict(found[name]["facts"])
        one, other = before.pop("arrays"), after.pop("arrays")
        told += [f"{name}: {fact}" for fact in sorted(set(before) | set(after)) if before.get(fact) != after.get(fact)]
        told += [f"{name}: values of {part}" for part in sorted(set(one) | set(other)) if not close(one, other, part)]
    return told


def close(one, other, part) -> bool:
    """Whether an array's summaries agree to four digits of its norm."""
    before, after = np.array(one.get(part, [])), np.array(other.get(part, []))
    if before.shape != after.shape:
        return False
    return not before.size or bool(np.all(np.abs(before - after) <= 1e-4 * np.abs(before[:, :1])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record what is found, instead of comparing")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    found = {name: run() for name, run in SIMULATIONS.items()}
    # What is read back compares equal to what was written: tuples are lists, and so on.
    found = json.loads(as_json(found))
    if write:
        KEPT.write_text(readable(found) + "\n")
    told = differences(json.loads(KEPT.read_text()), found, exactly=True)
    for name, one in found.items():
        print(f"{name:22}", *(f"{part}={value[:8]}" for part, value in sorted(one["bytes"].items())))
    print("\n".join(f"DIFFERS {line}" for line in told) or f"all as in {KEPT.name}")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
