"""``python -m research questions``: what federating is worth where sites share a style; docs/results/questions.md.

Resumable: a finished training is a small file, and the page is written from the files alone.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpfpl_bench.demo.drawn_questions import drawn_houses
from dpfpl_bench.demo.scenarios import MODEL, ROUNDS, TEST, TRAIN, vlm_experiment
from dpfpl_bench.simulation.baselines import local_only
from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_bench.sweep.table import COLOURS, MARKS
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.models.backbone import Backbone
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events
from research.writing import deviation, kept, panels, picture, points, table, told_apart

__all__ = ["Cell", "all_cells", "run_cells", "write_page"]

SEEDS = 3
EPSILONS = (8.0, 4.0, 2.0, 1.0, 0.5)
DOZEN = 12
SITES = (3, 6, 12, 24, 40)
"""One site is what the column of each site alone says."""
CURVE_EPSILON = 2.0
ALONE = 2
"""Of the twelve sites every second one is also trained alone: a training for each costs as much as the federation."""

HEAD = f"""\
# Questions: what federating is worth

Made by `python -m research questions` from simulated runs with the embedded generative model; not to be edited by hand.
A dozen sites ask about drawn pictures, {TRAIN} lines each to learn from and {TEST} to be tested on. Most of how answers
are to be worded is shared: numbers and shapes in German words, colours in French. Each site also has a habit of its
own: one wording of one kind of question, about one line in fifteen, is answered in figures or another language. The
model was never trained on such a mixture, so no words before the question ask for it; a prompt has to be learned.

Percent of a site's own test questions answered right (normalised exact match), mean ± standard deviation over seeds;
each seed draws other pictures, questions, answers and noise. `per_step`, `promptfl`, four vectors, {ROUNDS} rounds of
one step on all lines, rate 0.1, clipping 0.1, delta 1e-5, `distributed` trust; epsilon is for the recipient of the
prompt, per line of a site. *Alone*: the same training with one site's lines, every second of the twelve sites. The
shared style was chosen on pictures of seed 0, rounds and rate on a seed of their own by accuracy, at sites alone too
(there twice the rate gave 45.0 instead of 43.8 at epsilon 2); nothing was chosen on the other seeds here.
"""
COLUMNS = ("federated", "worst site", "each site alone", "ahead", "un-prompted", "operator's epsilon", "seeds")


@dataclass(frozen=True)
class Cell:
    """One training: of the federation, or of its sites alone one by one.

    Attributes: ``who`` is "federated" or "alone"; ``epsilon`` None is no noise; ``seed`` of pictures, questions, noise.
    """

    who: str
    sites: int
    epsilon: float | None
    seed: int

    @property
    def key(self) -> str:
        """Its file's name."""
        return f"{self.who}-{self.sites}-{'none' if self.epsilon is None else f'{self.epsilon:g}'}-{self.seed}"


def all_cells() -> Iterator[Cell]:
    """The dozen at the demo's epsilon first, over all seeds."""
    levels = (CURVE_EPSILON, None, *(level for level in EPSILONS if level != CURVE_EPSILON))
    for level in levels:
        for seed in range(SEEDS):
            for who in ("federated", "alone"):
                yield Cell(who, DOZEN, level, seed)
    for seed in range(SEEDS):
        for count in SITES:
            if count != DOZEN:
                yield Cell("federated", count, CURVE_EPSILON, seed)


def run_cells(out: Path, on_text: Callable[[str], None]) -> dict[Cell, dict[str, Any]]:
    """Run what is missing; what is found of every cell."""
    backbone = load_backbone(MODEL)

    def measured(cell: Cell) -> dict[str, Any]:
        on_text(cell.key)
        return _measured(cell, backbone, FeatureCache(out / "features", backbone))

    return {cell: kept(out / f"{cell.key}.json", partial(measured, cell)) for cell in all_cells()}


def _measured(cell: Cell, backbone: Backbone, cache: FeatureCache) -> dict[str, Any]:
    """Shares of right answers, mean over sites and the worst; epsilons where there is noise."""
    sites = prepare_sites(drawn_houses(cell.sites, TRAIN, TEST, cell.seed), (), cache, site_names(cell.sites))
    experiment = vlm_experiment(backbone, sites, cell.epsilon)
    if cell.who == "alone":
        floor = local_only(backbone, sites[::ALONE], experiment, cell.seed)
        return {"answers": floor["local"], "worst_site": floor["worst_site"]}
    return _federated(backbone, sites, experiment, cell.seed) | _epsilons(experiment)


def _federated(backbone: Backbone, sites: list[SimulatedSite], experiment: Experiment, seed: int) -> dict[str, Any]:
    at_the_end = dataclasses.replace(experiment.rounds, evaluate_every=100_000)
    outcome = Simulation(backbone, sites, seed).run(dataclasses.replace(experiment, rounds=at_the_end))
    answers = [final["personal_local"] for final in outcome.final.values()]
    return {
        "answers": statistics.mean(answers),
        "worst_site": min(answers),
        "unprompted": statistics.mean(final["zero_shot_local"] for final in outcome.final.values()),
    }


def _epsilons(experiment: Experiment) -> dict[str, Any]:
    if not experiment.is_private:
        return {}
    events = [event for event in planned_events(experiment) if event.adversary == "operator"]
    return {"epsilon_operator": epsilon(events, experiment.privacy.target_delta)}


@dataclass(frozen=True)
class Line:
    """A cell over its seeds, in percent. Attributes: mean and standard deviation of answers; worst of any site."""

    mean: float
    spread: float
    worst: float
    seeds: int
    unprompted: float | None
    operator: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.spread:.1f}"


Lines = Mapping[tuple[str, int, float | None], Line]
"""By who, number of sites and epsilon."""


def _lines(found: Mapping[Cell, Mapping[str, Any]]) -> Lines:
    groups: dict[tuple[str, int, float | None], list[Mapping[str, Any]]] = {}
    for cell, figures in found.items():
        groups.setdefault((cell.who, cell.sites, cell.epsilon), []).append(figures)
    return {key: _line(figures) for key, figures in groups.items()}


def _line(figures: list[Mapping[str, Any]]) -> Line:
    answers = [100 * each["answers"] for each in figures]
    plain = [100 * each["unprompted"] for each in figures if "unprompted" in each]
    return Line(
        statistics.mean(answers),
        deviation(answers),
        100 * min(each["worst_site"] for each in figures),
        len(figures),
        statistics.mean(plain) if plain else None,
        figures[0].get("epsilon_operator"),
    )


def write_page(found: Mapping[Cell, Mapping[str, Any]], docs: Path) -> Path:
    """docs/results/questions.md and its picture; the page's path."""
    name = "images/questions-federated-and-alone.svg"
    lines = _lines(found)
    _draw(lines, docs / name)
    dozen = [
        ("no noise" if level is None else f"{level:g}", lines["federated", DOZEN, level], lines["alone", DOZEN, level])
        for level in (*EPSILONS, None)
    ]
    alone = lines["alone", DOZEN, CURVE_EPSILON]
    counts = [(str(count), lines["federated", count, CURVE_EPSILON], alone) for count in SITES]
    parts = [
        HEAD,
        "## By epsilon, twelve sites\n",
        table(("epsilon", *COLUMNS), map(_cells, dozen)),
        f"\n## By number of sites, epsilon {CURVE_EPSILON:g}\n",
        table(("sites", *COLUMNS), map(_cells, counts)),
        f"\n![Right answers by epsilon and by number of sites]({name})\n",
    ]
    path = docs / "questions.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _cells(row: tuple[str, Line, Line]) -> Sequence[str]:
    what, together, alone = row
    return (
        what,
        str(together),
        f"{together.worst:.1f}",
        str(alone),
        f"{together.mean - alone.mean:+.1f}",
        f"{together.unprompted:.1f}",
        "-" if together.operator is None else f"{together.operator:.3g}",
        str(together.seeds),
    )


def _draw(lines: Lines, path: Path) -> None:
    """Two panels: by epsilon with twelve sites, by number of sites at one epsilon."""
    with picture(path, (11, 4.6)) as figure:
        left, right = panels(figure, 2, 2, sharey=True)
        for number, (who, label) in enumerate((("federated", "twelve sites together"), ("alone", "each site alone"))):
            _curve(left, EPSILONS, [lines[who, DOZEN, level] for level in EPSILONS], number, label=label)
            bare = lines[who, DOZEN, None].mean
            left.axhline(bare, color=COLOURS[number], linestyle=":", label=f"{label}, no noise")
        together = [lines["federated", count, CURVE_EPSILON] for count in SITES]
        _curve(right, [1, *SITES], [lines["alone", DOZEN, CURVE_EPSILON], *together], 0)
        left.set_title("twelve sites")
        left.set_xlabel("epsilon for the recipient of the prompt")
        left.set_ylabel("right answers, percent")
        right.set_title(f"epsilon {CURVE_EPSILON:g}")
        right.set_xlabel("sites")
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        told_apart(figure, left, ncols=2, fontsize=8)


def _curve(axis: Any, places: Sequence[float], lines: Sequence[Line], number: int, **label: str) -> None:
    means = [(line.mean, line.spread) for line in lines]
    style = {"color": COLOURS[number], "marker": MARKS[number], "markersize": 4, "linewidth": 1.4}
    points(axis, places, means, **style, **label)
