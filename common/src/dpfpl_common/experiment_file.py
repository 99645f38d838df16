"""experiment.toml: what stands there, and what is taken where it says nothing of mechanism and trust."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dpfpl_common.experiment import MECHANISMS, Experiment
from dpfpl_common.settings import from_table, read_toml

__all__ = ["experiment_from_table", "load_experiment", "mechanism_for"]


def load_experiment(path: Path) -> Experiment:
    """Read experiment.toml; errors name the key, the value and what was expected."""
    return experiment_from_table(read_toml(path), path.name)


def experiment_from_table(table: Mapping[str, Any], where: str) -> Experiment:
    """An experiment from the content of a file; mechanism and trust, if left out, as ``mechanism_for`` says.

    What crosses the wire, and what a run folder keeps, names both and is not read by this.
    """
    privacy = table.get("privacy", {})
    if not isinstance(privacy, Mapping):
        return from_table(Experiment, table, where)  # says what is wrong with it
    mechanism, trust = mechanism_for(table)
    chosen = {"mechanism": mechanism, "trust": trust, **privacy}
    return from_table(Experiment, {**table, "privacy": chosen}, where)


def mechanism_for(table: Mapping[str, Any], served: Collection[str] = MECHANISMS) -> tuple[str, str]:
    """Mechanism and trust of an experiment's table, filled in where they are left out.

    ``one_shot`` with ``local`` trust wherever it can serve: it is the better at most epsilons (docs/privacy.md), holds
    the operator to the target as well and is charged once. ``per_step`` otherwise: for questions, whole sites, and
    where another setting is one of ``per_step`` only.

    Args:
        table: the experiment's.
        served: the mechanisms under which the model can learn, where it is known.
    """
    privacy, task, prompt = (_part(table, name) for name in ("privacy", "task", "prompt"))
    mechanism, trust = privacy.get("mechanism"), privacy.get("trust")
    if mechanism is None:
        needs_steps = (
            "one_shot" not in served
            or trust not in (None, "local")
            or privacy.get("unit", "example") != "example"
            or privacy.get("clipping", "joint") != "joint"
            or privacy.get("accounting", "honest") != "honest"
            or task.get("kind", "classify") != "classify"
            or task.get("question", "") != ""  # asked of generative models, which have no class features
            or prompt.get("retention", 0.0) != 0.0
        )
        mechanism = "per_step" if needs_steps else "one_shot"
    if trust is None:
        trust = "local" if mechanism == "one_shot" else "distributed"
    return mechanism, trust


def _part(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = table.get(name, {})
    return part if isinstance(part, Mapping) else {}
