"""``python -m research models``: every known family made with random weights, loaded, trained, exported and timed here.

Each family runs in a process of its own, so that its memory is its own. The table of docs/results/models.md is made
by this command, with architectures from the installed transformers and sizes that fit a laptop: it shows that a
family works and how families compare, not how long a model of billions of parameters takes. Other sizes can be asked
for.
"""

import contextlib
import ctypes
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from dpfpl_common.errors import ModelError
from random_models.parts import Sizes

__all__ = ["BEGIN", "END", "USUAL", "FamilyFacts", "Trial", "measure", "measure_all", "table", "with_table"]

BEGIN, END = "<!-- table: python -m research models -->", "<!-- end of the table -->"
USUAL = Sizes(width=256, layers=6, heads=8, image=112, patch=14)
REPEATS = 5
CLASSES = ("cat", "small red dog", "bird", "green house")


@dataclass(frozen=True)
class Trial:
    """What is made and measured: sizes of the models, examples of a step, where and in what it is computed."""

    sizes: Sizes = USUAL
    batch: int = 16
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1


@dataclass(frozen=True)
class FamilyFacts:
    """What was seen of one family.

    Attributes:
        family: the model type.
        model: the class of transformers.
        parameters: of the random model.
        row: numbers that an image becomes.
        trains: a noised round moved the shared update and the personal prompt, both finite.
        exports: files of an exported prompt.
        exact: which shortcuts serve it; each is held to the plain forward by tests.
        first_step_ms: the first batch's per-example gradients, wall clock: nothing of its pictures is kept yet.
        step_ms: the same once more, median; what is kept of pictures between steps serves it.
        step_mb: what the process grew by, at its largest, while making them; on a GPU what torch held there beyond the
            model, at its largest.
    """

    family: str
    model: str
    parameters: int
    row: int
    trains: bool
    exports: str
    exact: str
    first_step_ms: float
    step_ms: float
    step_mb: float


def measure(family: str, trial: Trial) -> FamilyFacts:
    """One family, in this process: its peak memory only grows, so call it once a process."""
    import numpy as np
    import torch
    from PIL import Image

    from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
    from dpfpl_client.learning.step import SystemRandomness
    from dpfpl_client.models.backbone import LabelledFeatures
    from dpfpl_client.models.class_scorer import EXACT
    from dpfpl_client.models.loader import load_backbone
    from random_models.families import write_random_model

    torch.set_num_threads(trial.threads)
    sizes, batch, dtype = trial.sizes, trial.batch, getattr(torch, trial.precision)
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_model(family, Path(folder), sizes, dtype=dtype)
        backbone = load_backbone(str(path), dtype=dtype, device=trial.device)
    experiment = _experiment(backbone.width, batch)
    generator, pixels = np.random.default_rng(0), (sizes.image, sizes.image, 3)
    images = [Image.fromarray(generator.integers(0, 255, pixels, dtype=np.uint8)) for _ in range(batch)]
    rows = torch.stack(list(backbone.image_features(images)))
    examples = LabelledFeatures(rows, torch.arange(batch) % len(CLASSES))
    scorer = backbone.scorer(experiment)
    context = backbone.text_embeddings("a", 4)
    before = _held_megabytes(trial.device)
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        scorer.gradients(context, examples, EXACT)
        times.append(time.perf_counter() - began)
    grown = _most_megabytes(trial.device) - before
    learner = PromptLearner(backbone, experiment, SiteFeatures(examples, examples, examples, CLASSES))
    result = learner.train_round(
        np.zeros(experiment.context_shape, np.float32),
        PersonalState.initial(experiment),
        SystemRandomness().for_round("a", 1),
    )
    moved = [result.update, result.state.context]
    model: Any = backbone._model  # type: ignore[attr-defined]
    return FamilyFacts(
        family=family,
        model=type(model).__name__,
        parameters=sum(weight.numel() for weight in model.parameters()),
        row=backbone.feature_size,
        trains=all(bool(np.isfinite(part).all() and part.any()) for part in moved),
        exports=_exported(backbone, experiment, result.state.context),
        exact=backbone.shortcuts,
        first_step_ms=round(1000 * times[0], 1),
        step_ms=round(1000 * statistics.median(times[1:]), 1),
        step_mb=round(grown, 1),
    )


def measure_all(families: list[str], trial: Trial, on_family: Callable[[str], None]) -> dict[str, Any]:
    """All of them, each in a process of its own, and what they ran on; ``on_family`` hears of each before it begins.

    Raises:
        ModelError: NOT_MEASURED, a family cannot be made in these sizes.
    """
    facts = []
    for number, family in enumerate(families, start=1):
        on_family(f"{family} ({number} of {len(families)})")
        command = [sys.executable, "-m", "research.tables.models", family, json.dumps(asdict(trial))]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ModelError(
                code="NOT_MEASURED",
                message=f"{family}: {(done.stderr.strip() or 'ended').splitlines()[-1][:300]}",
                advice="Give other sizes (an even number of heads suits every family), or another device or precision.",
            )
        facts.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "device": _described(trial),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "sizes": asdict(trial.sizes),
        "batch": trial.batch,
        "families": facts,
    }


def table(measured: dict[str, Any]) -> str:
    """Markdown of the measured facts."""
    sizes, batch = measured["sizes"], measured["batch"]
    lines = [
        f"Device: {measured['device']}; "
        + ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
        + f". Random weights, width {sizes['width']}, {sizes['layers']} layers a tower, pictures of {sizes['image']} "
        f"pixels; a step is the exact gradients of {batch} examples, one for each.",
        "",
        "| Family | Class | Parameters | Image row | Trains | Exports | Exact and shared "
        "| First step, ms | Step, ms | Memory, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fact in measured["families"]:
        lines.append(
            f"| `{fact['family']}` | `{fact['model']}` | {fact['parameters'] / 1e6:.1f} M | {fact['row']} "
            f"| {'yes' if fact['trains'] else 'no'} | {fact['exports']} | {fact['exact']} "
            f"| {fact['first_step_ms']:.0f} | {fact['step_ms']:.0f} | {fact['step_mb']:.0f} |"
        )
    return "\n".join(lines)


def with_table(text: str, measured: dict[str, Any]) -> str:
    """The page with the table between its marks replaced."""
    head, found, rest = text.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{head}{BEGIN}\n\n{table(measured)}\n\n{END}{tail}"


def _experiment(width: int, batch: int) -> Any:
    from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings

    return Experiment(
        name="models",
        classes=CLASSES,
        sites=("a",),
        model=ModelSettings(width=width),
        prompt=PromptSettings(num_context=4, rank=2, init_text="a"),
        privacy=PrivacySettings(
            mechanism="per_step", noise_multiplier=1.0, trust="local", sample_rate=0.9, nominal_site_size=batch
        ),
        rounds=RoundSettings(number=1, local_steps=2),
    )


def _exported(backbone: Any, experiment: Any, personal: Any) -> str:
    import numpy as np

    from dpfpl_client.use.exporting.card import Facts
    from dpfpl_client.use.exporting.export import write_export
    from dpfpl_client.use.prompt import SitePrompt

    prompt = SitePrompt(experiment, np.zeros(experiment.context_shape, np.float32), personal, 1)
    with tempfile.TemporaryDirectory() as folder:
        written = write_export(prompt, backbone, Path(folder) / "out", Facts(site="a"))
    return "context and PEFT adapter" if not written.no_adapter else "context"


def _held_megabytes(device: str) -> float:
    """What this process holds there now; from now on ``_most_megabytes`` counts from here, where the system can."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what making the model left behind would hide what a step takes
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is what is held now
    return _most_megabytes(device)


def _most_megabytes(device: str) -> float:
    """The most that this process has held there, since ``_held_megabytes`` or since it began."""
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _described(trial: Trial) -> str:
    if trial.device == "cpu":
        threads = "one thread" if trial.threads == 1 else f"{trial.threads} threads"
        return f"{_processor()}, {threads}, {trial.precision}"
    import torch

    return f"{torch.cuda.get_device_name(trial.device)}, {trial.precision}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    print(json.dumps(asdict(measure(sys.argv[1], Trial(**{**given, "sizes": Sizes(**given["sizes"])})))))
