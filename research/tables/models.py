"""``python -m research models``: every known family made with random weights, loaded, trained, exported and timed here.

Each family runs in a process of its own, so that its memory is its own. The table of docs/results/models.md is made
by this command, with architectures from the installed transformers and sizes that fit a laptop: it shows that a
family works and how families compare, not how long a model of billions of parameters takes.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.class_scorer import EXACT
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.use.exporting.card import Facts
from dpfpl_client.use.exporting.export import write_export
from dpfpl_client.use.prompt import SitePrompt
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from random_models.families import write_random_model
from random_models.parts import Sizes
from research.speed.timing import give_back_free_memory, most_memory, processor
from research.writing import markdown

__all__ = ["BEGIN", "END", "Trial", "measure_all", "table", "with_table"]

BEGIN, END = "<!-- table: python -m research models -->", "<!-- end of the table -->"
REPEATS = 5
CLASSES = ("cat", "small red dog", "bird", "green house")


@dataclass(frozen=True)
class Trial:
    """What is made and measured: sizes of the models, examples of a step, where and in what it is computed."""

    sizes: Sizes
    batch: int
    device: str
    precision: Literal["float32", "bfloat16"]
    threads: int


def measure(family: str, trial: Trial) -> dict[str, Any]:
    """One family, in this process: its peak memory only grows, so call it once a process.

    Returns:
        ``family``, the model type; ``model``, the class of transformers; ``parameters`` of the random model; ``row``,
        numbers that an image becomes; ``trains``, whether a noised round moved the shared update and the personal
        prompt, both finite; ``exports``, files of an exported prompt; ``exact``, which shortcuts serve it, each held to
        the plain forward by tests; ``first_step_ms``, the first batch's per-example gradients, wall clock, when nothing
        of its pictures is kept yet; ``step_ms``, the same once more, median; ``step_mb``, what the process grew by, at
        its largest, while making them; on a GPU what torch held there beyond the model, at its largest.
    """
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
    return {
        "family": family,
        "model": type(model).__name__,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "row": backbone.feature_size,
        "trains": all(bool(np.isfinite(part).all() and part.any()) for part in moved),
        "exports": _exported(backbone, experiment, result.state.context),
        "exact": backbone.shortcuts,
        "first_step_ms": 1000 * times[0],
        "step_ms": 1000 * statistics.median(times[1:]),
        "step_mb": grown,
    }


def measure_all(families: list[str], trial: Trial, on_family: Callable[[str], None]) -> dict[str, Any]:
    """All of them, each in a process of its own, and what they ran on; ``on_family`` hears of each before it begins.

    Raises:
        ModelError: NOT_MEASURED, a family cannot be made in these sizes.
    """
    facts = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for number, family in enumerate(families, start=1):
            on_family(f"{family} ({number} of {len(families)})")
            try:
                facts.append(pool.submit(measure, family, trial).result())
            except Exception as error:
                raise ModelError(
                    code="NOT_MEASURED",
                    message=f"{family}: {error}",
                    advice="Give other sizes (an even number of heads suits every family), or another device or "
                    "precision.",
                ) from error
    return {
        "device": _described(trial),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "sizes": asdict(trial.sizes),
        "batch": trial.batch,
        "families": facts,
    }


def table(measured: dict[str, Any]) -> str:
    """Markdown of the measured facts."""
    sizes = measured["sizes"]
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    columns = {
        "Family": "`{family}`",
        "Class": "`{model}`",
        "Parameters": "{millions:.1f} M",
        "Image row": "{row}",
        "Trains": "{told}",
        "Exports": "{exports}",
        "Exact and shared": "{exact}",
        "First step, ms": "{first_step_ms:.0f}",
        "Step, ms": "{step_ms:.0f}",
        "Memory, MB": "{step_mb:.0f}",
    }
    rows = [
        {**fact, "millions": fact["parameters"] / 1e6, "told": "yes" if fact["trains"] else "no"}
        for fact in measured["families"]
    ]
    return (
        f"Device: {measured['device']}; {versions}. Random weights, width {sizes['width']}, {sizes['layers']} layers a "
        f"tower, pictures of {sizes['image']} pixels; a step is the exact gradients of {measured['batch']} examples, "
        f"one for each.\n\n{markdown(columns, rows)}"
    )


def with_table(text: str, measured: dict[str, Any]) -> str:
    """The page with the table between its marks replaced."""
    head, found, rest = text.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{head}{BEGIN}\n\n{table(measured)}\n\n{END}{tail}"


def _experiment(width: int, batch: int) -> Experiment:
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


def _exported(backbone: Backbone, experiment: Experiment, personal: npt.NDArray[np.float64]) -> str:
    prompt = SitePrompt(experiment, np.zeros(experiment.context_shape, np.float32), personal, 1)
    with tempfile.TemporaryDirectory() as folder:
        written = write_export(prompt, backbone, Path(folder) / "out", Facts(site="a"))
    return "context and PEFT adapter" if not written.no_adapter else "context"


def _held_megabytes(device: str) -> float:
    """What this process holds there now; from now on ``_most_megabytes`` counts from here, where the system can."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    give_back_free_memory()  # what making the model left behind would hide what a step takes
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is what is held now
    return _most_megabytes(device)


def _most_megabytes(device: str) -> float:
    """The most that this process has held there, since ``_held_megabytes`` or since it began."""
    return (most_memory() if device == "cpu" else torch.cuda.max_memory_allocated(device)) / 2**20


def _described(trial: Trial) -> str:
    if trial.device == "cpu":
        threads = "one thread" if trial.threads == 1 else f"{trial.threads} threads"
        return f"{processor()}, {threads}, {trial.precision}"
    return f"{torch.cuda.get_device_name(trial.device)}, {trial.precision}"
