"""A finished run for an experiment tracker, MLflow or TensorBoard: what result.json holds and nothing else."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.text import first_line

__all__ = ["MlflowTracker", "TensorboardTracker", "Tracker", "numbers_of", "parameters_of", "track"]

ROUND_KEYS = ("seconds", "bytes_up", "bytes_down", "metrics")
RESULT_KEYS = ("accuracy", "baselines", "seconds")


class Tracker(Protocol):
    """Where a run goes."""

    def parameters(self, values: Mapping[str, str]) -> None:
        """What the run was."""
        ...

    def number(self, name: str, value: float, step: int) -> None:
        """A finite number that the run gave, and after how many rounds."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def track(result: Mapping[str, Any], tracker: Tracker) -> None:
    """Hand a run to a tracker and close it.

    Args:
        result: what result.json holds.
        tracker: empty.
    """
    try:
        tracker.parameters(parameters_of(result))
        for name, value, step in numbers_of(result):
            tracker.number(name, value, step)
    finally:
        tracker.close()


def parameters_of(result: Mapping[str, Any]) -> dict[str, str]:
    """The experiment's configuration by dotted keys (``privacy.target_epsilon``), its digest, and versions."""
    facts = {key: result[key] for key in ("date", "transport", "experiment_digest", "seed", "versions")}
    return {name.replace("/", "."): str(value) for name, value in _leaves({**result["config"], **facts})}


def numbers_of(result: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Every finite number of the rounds, then of the end: name, value, rounds before it.

    Accuracies are from 0 to 1. Those of single sites (``round/metrics/SITE/...``) exist on public data alone. An
    infinite epsilon is left out.
    """
    last = len(result["rounds"])
    for entry in result["rounds"]:
        yield from _numbers({"round": {key: entry[key] for key in ROUND_KEYS if key in entry}}, entry["round"])
    yield from _numbers({key: result[key] for key in RESULT_KEYS if key in result}, last)
    scores = {row["candidate"]: row["value"] for row in result.get("scores") or ()}
    epsilons = {row["adversary"]: row["epsilon"] for row in result["privacy"]["epsilons"]}
    yield from _numbers({"noised_scores": scores, "epsilon": epsilons}, last)


def _numbers(table: Mapping[str, Any], step: int) -> Iterator[tuple[str, float, int]]:
    for name, value in _leaves(table):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value), step


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


class MlflowTracker:
    """One new run of an MLflow experiment.

    Args:
        uri: of the tracking server, or of a folder or database that MLflow knows.
        experiment: MLflow's own word for a collection of runs; made where there is none.
        run: the run's name.

    Raises:
        ConfigError: PACKAGE_MISSING, TRACKER_FAILED.
    """

    def __init__(self, uri: str, experiment: str, run: str) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise _missing("mlflow") from None
        try:
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            within = found.experiment_id if found else self._client.create_experiment(experiment)
            self._run: str = self._client.create_run(within, run_name=run).info.run_id
        except MlflowException as error:
            raise ConfigError(
                code="TRACKER_FAILED",
                message=f"MLflow at {uri} does not take the run ({first_line(error)}).",
                advice="Is it in reach? Credentials are MLflow's own: MLFLOW_TRACKING_TOKEN.",
            ) from None

    def parameters(self, values: Mapping[str, str]) -> None:
        """See ``Tracker``."""
        for name, value in values.items():
            self._client.log_param(self._run, name, value)

    def number(self, name: str, value: float, step: int) -> None:
        """See ``Tracker``."""
        self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """See ``Tracker``."""
        self._client.set_terminated(self._run)


class TensorboardTracker:
    """A folder of event files.

    Raises:
        ConfigError: PACKAGE_MISSING.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._writer = SummaryWriter(str(folder))

    def parameters(self, values: Mapping[str, str]) -> None:
        """See ``Tracker``."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        self._writer.add_text("experiment", f"| setting | value |\n|---|---|\n{rows}", 0)

    def number(self, name: str, value: float, step: int) -> None:
        """See ``Tracker``."""
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See ``Tracker``."""
        self._writer.close()


def _missing(extra: str) -> ConfigError:
    return ConfigError(
        code="PACKAGE_MISSING",
        message=f"The package for {extra} is not installed.",
        advice=f"pip install 'dpfpl-server[{extra}]'",
    )
