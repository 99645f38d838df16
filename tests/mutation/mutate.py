"""Breaks the mechanism on purpose, one way at a time, and shows that the tests notice (``make mutate``).

Each mutation is made in a private copy of the repository, where the named tests must then fail; the same tests must
pass in an unbroken copy first. Two copies work side by side. The last line is ``caught N of N``; the exit code is 0
only if all are caught. Words as arguments choose the mutations whose names have them all: ``mutate.py one_shot row``.
"""

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crash_safety import CRASH_SAFETY
from site_gate import SITE_GATE

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
SAMPLING = "common/src/dpfpl_common/sampling.py"
WHOLE_UPDATE = "client/src/dpfpl_client/learning/whole_update.py"
AGGREGATION = "server/src/dpfpl_server/aggregation.py"
STEP = "client/src/dpfpl_client/learning/step.py"
OPTIMIZER = "client/src/dpfpl_client/learning/dp_optimizer.py"
NOISE = "common/src/dpfpl_common/noise.py"
TRUST = "common/src/dpfpl_common/trust.py"
CORE = "client/src/dpfpl_client/agent/core.py"
METHODS = "client/src/dpfpl_client/learning/methods.py"
LEARNER = "client/src/dpfpl_client/learning/learner.py"
PROTOTYPES = "client/src/dpfpl_client/learning/prototypes.py"
STEP_TESTS = "tests/client/learning/test_step.py"
LEARNER_TESTS = "tests/client/learning/test_learner.py"
METHOD_TESTS = "tests/client/learning/test_methods.py"
NO_LEAK_TESTS = "tests/client/learning/test_no_leak_between_examples.py"
REPLY_TESTS = "tests/audit/test_reply.py"
PROTOTYPE_TESTS = "tests/client/learning/test_prototypes.py"
NOISE_TESTS = "tests/common/test_noise.py"
TRUST_TESTS = "tests/common/test_trust.py"
CLIPPING_TESTS = "tests/common/test_clipping.py"
SITE_UNIT_TESTS = "tests/integration/test_site_unit.py"
CORE_TESTS = "tests/client/agent/test_core.py"


@dataclass(frozen=True)
class Mutation:
    """One way to break the promise.

    Attributes:
        name: what is broken, in words.
        file: where.
        old: text that occurs there exactly once.
        new: what it becomes.
        tests: files of which at least one test must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "the batch's sum is clipped instead of every example",
        OPTIMIZER,
        "    return [np.tensordot(factors[kept, b], block[kept], axes=1) for b, block in enumerate(blocks)]",
        "    sums = [block[kept].sum(axis=0) for block in blocks]\n"
        "    whole = joint_clip_factors([[float(np.square(s).sum()) for s in sums]], clipping_norms)[0]\n"
        "    return [whole * s for s in sums]",
        (STEP_TESTS,),
    ),
    Mutation(
        "no clipping at all",
        OPTIMIZER,
        "    kept = factors[:, 0] > 0\n",
        "    kept = factors[:, 0] > 0\n    factors = np.ones_like(factors)\n",
        (STEP_TESTS,),
    ),
    Mutation(
        "the last block is left out of the joint norm",
        OPTIMIZER,
        "np.repeat(joint_clip_factors(squared, clipping_norms)[:, None]",
        "np.repeat(joint_clip_factors(squared[:, :-1] if len(blocks) > 1 else squared, "
        "clipping_norms[:-1] if len(blocks) > 1 else clipping_norms)[:, None]",
        (STEP_TESTS,),
    ),
    Mutation(
        "non-finite examples pass the clip",
        "common/src/dpfpl_common/clipping.py",
        "    return np.where(finite, factors, 0.0)",
        "    return np.where(finite, factors, 1.0)",
        (CLIPPING_TESTS, STEP_TESTS),
    ),
    Mutation(
        "one block without its noise",
        STEP,
        "noise_stddevs=[shared_stddev, *[factor_stddev] * len(personal_blocks)]",
        "noise_stddevs=[shared_stddev, *[factor_stddev] * (len(personal_blocks) - 1), *[0.0] * bool(personal_blocks)]",
        (STEP_TESTS,),
    ),
    Mutation(
        "sensitivity C / B, as published",
        STEP,
        "    shared_stddev = site_noise_stddev(experiment)\n",
        "    shared_stddev = site_noise_stddev(experiment) / divisor\n",
        (STEP_TESTS,),
    ),
    Mutation(
        "the true batch size as divisor",
        STEP,
        "        expected_batch_size=divisor,",
        "        expected_batch_size=max(1, len(gradients)),",
        (STEP_TESTS,),
    ),
    Mutation(
        "the same noise for every block",
        OPTIMIZER,
        "            total = p.summed_grad.numpy()\n",
        "            total = p.summed_grad.numpy()\n"
        "            self._once = getattr(self, '_once', None)\n"
        "            if self._once is None and stddev > 0:\n"
        "                self._once = float(self._noise.add(np.zeros(1), 1.0)[0])\n"
        "            p.grad = torch.from_numpy(total + stddev * (self._once or 0.0))\n"
        "            continue\n",
        (STEP_TESTS, LEARNER_TESTS),
    ),
    Mutation(
        "un-noised gradients reach the personal prompt",
        STEP,
        "    return StepRelease(shared=shared, personal=directions.merge(released))",
        "    raw = [block.sum(axis=0) / divisor for block in directions.split(gradients)]\n"
        "    return StepRelease(shared=shared, personal=directions.merge(raw))",
        (STEP_TESTS, LEARNER_TESTS),
    ),
    Mutation(
        "an empty batch releases nothing",
        STEP,
        "    privacy = experiment.privacy\n    divisor",
        "    privacy = experiment.privacy\n"
        "    if len(gradients) == 0:\n"
        "        return StepRelease(np.zeros(gradients.shape[1:]), np.zeros(gradients.shape[1:]))\n"
        "    divisor",
        (STEP_TESTS,),
    ),
    Mutation(
        "every example joins every step",
        SAMPLING,
        "        return np.flatnonzero(words < np.uint64(int(sample_rate * 2**53)))",
        "        return np.arange(count)",
        (STEP_TESTS,),
    ),
    Mutation(
        "noise from a seed",
        NOISE,
        "    drawn: list[npt.NDArray[np.int64]] = []\n",
        "    entropy = np.random.default_rng(0).bytes\n    drawn: list[npt.NDArray[np.int64]] = []\n",
        (NOISE_TESTS,),
    ),
    Mutation(
        "two thirds of the noise",
        NOISE,
        "        step = noise_stddev * (1.0 + ROUNDING_SLACK) / SCALE",
        "        step = noise_stddev * 0.667 / SCALE",
        (NOISE_TESTS,),
    ),
    Mutation(
        "noise added to the float sum, so that floats leak",
        NOISE,
        "np.asarray((steps.astype(np.int64) + discrete_gaussian(steps.size).reshape(steps.shape)) * step)",
        "np.asarray(total + discrete_gaussian(steps.size).reshape(steps.shape) * step)",
        (NOISE_TESTS,),
    ),
    Mutation(
        "every site adds too small a share",
        TRUST,
        "            return stddev / math.sqrt(honest_shares(experiment))",
        "            return stddev / math.sqrt(len(experiment.sites) + 1)",
        (TRUST_TESTS,),
    ),
    Mutation(
        "the operator's messages are accounted as if aggregated",
        TRUST,
        ".get(privacy.trust, z / math.sqrt(shares))",
        ".get(privacy.trust, z)",
        (TRUST_TESTS,),
    ),
    Mutation(
        "class sums: a long feature counts in full",
        PROTOTYPES,
        " * np.minimum(1.0, (1.0 - 1e-12) / np.maximum(norms[finite], 1e-300))[:, None]",
        "",
        (PROTOTYPE_TESTS,),
    ),
    Mutation(
        "class sums: only classes with images are noised",
        PROTOTYPES,
        "    return noise.add(sums, noise_multiplier) if noise_multiplier > 0 else sums",
        "    noised = noise.add(sums, noise_multiplier) if noise_multiplier > 0 else sums\n"
        "    return np.where(np.any(sums != 0, axis=1)[:, None], noised, 0.0)",
        (PROTOTYPE_TESTS,),
    ),
    Mutation(
        "one_shot: a row of pure noise is believed",
        PROTOTYPES,
        "    found = energy > pure_noise + hiding\n",
        "    found = energy > 0\n",
        (PROTOTYPE_TESTS,),
    ),
    Mutation(
        "one_shot: a class that may hide in the noise is given up",
        PROTOTYPES,
        "    weights = np.where(found, signal, min(math.sqrt(hiding), most))\n",
        "    weights = signal\n",
        (PROTOTYPE_TESTS,),
    ),
    Mutation(
        "one_shot: how far to believe a row is decided from the un-noised sums",
        LEARNER,
        "        prototypes = prototypes_from(sums, noise_multiplier, *self._public_facts)\n",
        "        train = self._features.train\n"
        "        true = np.zeros_like(sums)\n"
        "        np.add.at(true, train.labels.numpy(), train.features.double().numpy())\n"
        "        prototypes = prototypes_from(sums, noise_multiplier, *self._public_facts)\n"
        "        sizes = np.linalg.norm(true, axis=1)\n"
        "        prototypes = dataclasses.replace(prototypes, weights=sizes / max(1e-9, sizes.sum()))\n",
        (LEARNER_TESTS,),
    ),
    Mutation(
        "one_shot: the noised sums are drawn anew in every round",
        LEARNER,
        "            state = dataclasses.replace(state, class_sums=sums)\n",
        "            state = dataclasses.replace(state, class_sums=None)\n",
        (LEARNER_TESTS,),
    ),
    Mutation(
        "projection: directions from the site's own images",
        LEARNER,
        "        return expected, self._scorer.public_directions(self._initial, count)\n",
        "        own = self._features.train.features.double().numpy()\n"
        "        return expected, np.linalg.svd(own, full_matrices=False)[2][:count]\n",
        (LEARNER_TESTS,),
    ),
    Mutation(
        "projection: only the noise in the directions counts, but all of it stays",
        PROTOTYPES,
        "        sums, size = sums @ directions.T @ directions, len(directions)\n",
        "        size = len(directions)\n",
        (PROTOTYPE_TESTS,),
    ),
    Mutation(
        "dplora: the personal context is not cut to the rank",
        METHODS,
        "        return truncated(parameters, self._rank)\n",
        "        return parameters\n",
        (METHOD_TESTS,),
    ),
    Mutation(
        "dplora: the size of the personal context is forgotten",
        "client/src/dpfpl_client/learning/factorisation.py",
        "    return np.asarray((left[:, :rank] * values[:rank]) @ right[:rank])\n",
        "    return np.asarray(left[:, :rank] @ right[:rank])\n",
        (METHOD_TESTS,),
    ),
    Mutation(
        "fedpgp: the factors are not kept from round to round",
        "client/src/dpfpl_client/agent/store.py",
        "        if self.state.parameters is not None:\n",
        "        if False:\n",
        (f"{LEARNER_TESTS}::test_a_restart_from_the_record_equals_going_on",),
    ),
    Mutation(
        "fedpgp: the factors are made anew in every round",
        LEARNER,
        "        if state.optimizer.steps > 0:\n            return state\n",
        "",
        (f"{LEARNER_TESTS}::test_fedpgp_makes_its_factors_once",),
    ),
    Mutation(
        "fedotp: its personal block is not accounted for",
        TRUST,
        '"fedotp": 2',
        '"fedotp": 1',
        (METHOD_TESTS,),
    ),
    Mutation(
        "fedotp: the personal block is taken past the clip",
        STEP,
        "    shared, *released = optimizer.release(blocks)\n",
        "    shared, *released = optimizer.release(blocks)\n"
        "    if len(released) == 1:\n"
        "        released = [released[0] + 1e-3 * gradients.sum(axis=0)]\n",
        (STEP_TESTS,),
    ),
    Mutation(
        "one example's gradient depends on the others'",
        "client/src/dpfpl_client/learning/gradients.py",
        "    residual[torch.arange(len(labels)), labels] -= 1.0\n",
        "    residual[torch.arange(len(labels)), labels] -= 1.0\n    residual = residual - residual.mean(dim=0)\n",
        (NO_LEAK_TESTS,),
    ),
    Mutation(
        "one example's gradient depends on the others', in a generative model",
        "client/src/dpfpl_client/learning/generative/scorer.py",
        "torch.autograd.grad(losses.sum(), copies)[0]",
        "torch.autograd.grad((losses * losses.detach().mean()).sum(), copies)[0]",
        ("tests/client/learning/generative/test_families.py::test_an_example_changes_its_own_gradient_only",),
    ),
    Mutation(
        "the update is divided by the true number of images",
        STEP,
        "    divisor = privacy.sample_rate * privacy.nominal_site_size\n    shared_stddev",
        "    divisor = privacy.sample_rate * max(1, len(gradients))\n    shared_stddev",
        (REPLY_TESTS,),
    ),
    Mutation(
        "a release without a charge",
        CORE,
        "        sequence = self._ledger.reserve(experiment.name, request.round, digest, events)\n",
        "        sequence = 0\n",
        (CORE_TESTS,),
    ),
    Mutation(
        "fresh noise for a changed request of the same round",
        CORE,
        "        if charge.request_digest != digest:",
        "        if False:",
        (CORE_TESTS,),
    ),
    Mutation(
        "whole sites: the update is not clipped",
        WHOLE_UPDATE,
        "    clipped = factor * update if factor > 0",
        "    clipped = update if factor > 0",
        (SITE_UNIT_TESTS,),
    ),
    Mutation(
        "whole sites: a non-finite update passes the clip",
        WHOLE_UPDATE,
        "    clipped = factor * update if factor > 0 else np.zeros_like(update)",
        "    clipped = np.nan_to_num(factor * update) if factor > 0 else np.nan_to_num(update)",
        (SITE_UNIT_TESTS,),
    ),
    Mutation(
        "whole sites: the number of replies as divisor",
        AGGREGATION,
        "        return np.asarray(noised / (privacy.site_sample_rate * len(experiment.sites)))",
        "        return np.asarray(noised / max(1, len(updates)))",
        (SITE_UNIT_TESTS,),
    ),
    Mutation(
        "whole sites: the noise of a step, divided by its batch size",
        AGGREGATION,
        "        noised = noise.add(total, stddev) if stddev > 0 else total\n",
        "        divisor = privacy.sample_rate * privacy.nominal_site_size\n"
        "        noised = noise.add(total, stddev / divisor) if stddev > 0 else total\n",
        (SITE_UNIT_TESTS,),
    ),
    Mutation(
        "whole sites: only the rounds that a site took part in are charged, at the amplified rate",
        CORE,
        "            return planned_events(experiment, 0 if self._ledger.events(experiment.name) else None)",
        "            return planned_events(experiment, experiment.rounds.local_steps)",
        (SITE_UNIT_TESTS,),
    ),
    Mutation(
        "whole sites: every site joins every round",
        "server/src/dpfpl_server/strategy.py",
        "        return {sites[index]: self._nodes[sites[index]] for index in self._sampler.draw(len(sites), rate)}",
        "        return dict(self._nodes)",
        (SITE_UNIT_TESTS,),
    ),
    Mutation(
        "whole sites: the personal prompt is claimed to be private",
        TRUST,
        '("prompt_recipient", 0.0, 1.0)',
        '("prompt_recipient", z, 1.0)',
        (SITE_UNIT_TESTS,),
    ),
    Mutation(
        "replies are taken without the site's signature",
        "server/src/dpfpl_server/replies.py",
        "        if self._signatures is not None:\n",
        "        if False:\n",
        ("tests/server/test_signatures.py",),
    ),
    Mutation(
        "the signature leaves the reply's content out",
        "common/src/dpfpl_common/signed_text.py",
        "        _content_digest(reply),\n",
        "",
        ("tests/server/test_signatures.py", "tests/common/test_signed_text.py"),
    ),
    Mutation(
        "the signature is not tied to the experiment",
        "common/src/dpfpl_common/signed_text.py",
        "        experiment.digest().encode(),\n",
        "",
        ("tests/server/test_signatures.py", "tests/common/test_signed_text.py"),
    ),
    Mutation(
        "a median of single shares of noise passes for their sum",
        "common/src/dpfpl_common/experiment.py",
        '    elif rule != "mean" and p.trust != "local":\n',
        '    elif rule != "mean" and p.trust == "central":\n',
        ("tests/common/test_experiment.py",),
    ),
    Mutation(
        "a changed checkpoint is resumed from",
        "server/src/dpfpl_server/run_store.py",
        "        if not whole or digest != sha256:\n",
        "        if not whole:\n",
        ("tests/server/test_run_folder.py",),
    ),
    Mutation(
        "a second reply to the same message is aggregated too",
        "server/src/dpfpl_server/exchange.py",
        '            site = waiting.pop(message_id, "")\n',
        '            site = waiting.pop(message_id, "") or answered.get(message_id, "")\n',
        ("tests/server/test_strategy.py",),
    ),
    Mutation(
        "two server programs work on one run",
        "server/src/dpfpl_server/pulse.py",
        "                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "                pass\n",
        ("tests/server/test_pulse.py",),
    ),
    *(Mutation(*parts) for parts in (*SITE_GATE, *CRASH_SAFETY)),
)


def main(words: Sequence[str]) -> int:
    """Run the baseline and the mutations; print one line each."""
    chosen = [mutation for mutation in MUTATIONS if all(word in mutation.name for word in words)]
    tests = sorted({test for mutation in chosen for test in mutation.tests})
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        Path(folder).chmod(0o755)  # some tests have other users run what is inside
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(WORKERS):
            copy = Path(folder) / f"repository-{number}"
            ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis", "dist")
            shutil.copytree(ROOT, copy, ignore=ignored)
            copies.put(copy)
        if _run(copy, tests) != 0:
            print("the tests fail without any mutation; nothing can be shown")
            return 2
        with ThreadPoolExecutor(WORKERS) as pool:
            caught = sum(pool.map(lambda mutation: _caught(copies, mutation), chosen))
    print(f"caught {caught} of {len(chosen)}")
    return 0 if caught == len(chosen) else 1


def _caught(copies: "queue.SimpleQueue[Path]", mutation: Mutation) -> bool:
    copy = copies.get()
    file = copy / mutation.file
    original = file.read_text(encoding="utf-8")
    assert original.count(mutation.old) == 1, f"{mutation.name}: the text to change is not there exactly once"
    began = time.monotonic()
    file.write_text(original.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code = _run(copy, list(mutation.tests))
    finally:
        file.write_text(original, encoding="utf-8")
        copies.put(copy)
    caught = code == 1  # pytest: some tests failed; 2 and above would be an error of another kind
    print(f"{'caught ' if caught else 'MISSED '} {mutation.name} ({time.monotonic() - began:.0f} s)", flush=True)
    return caught


def _run(copy: Path, tests: list[str]) -> int:
    sources = [str(copy / name / "src") for name in ("common", "client", "server", "bench")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sources), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow and not long",
        *tests,
    ]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
