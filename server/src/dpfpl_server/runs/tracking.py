"""A finished run for an experiment tracker, MLflow or TensorBoard: what result.json holds and nothing else."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from dpfpl_common.errors import ConfigError, DeploymentError, PrivacyError, StateError
from dpfpl_common.ops.text import first_line

__all__ = [
    "MlflowTracker",
    "Number",
    "TensorboardTracker",
    "Tracker",
    "numbers_of",
    "parameters_of",
    "refuse_simulated",
    "track",
]

DEPLOYED = "grpc+tls"
"""The transport of a run whose sites were real; all others are simulations."""

ROUND_KEYS = ("seconds", "bytes_up", "bytes_down", "metrics")
RESULT_KEYS = ("accuracy", "baselines", "seconds")

MOST_METRICS, MOST_PARAMETERS, LONGEST_VALUE = 1000, 100, 6000
"""MLflow's limits: metrics and parameters of a request, characters of a parameter's value."""

Number = tuple[str, float, int]
"""A finite number that the run gave: its name, its value, and after how many rounds."""


class Tracker(Protocol):
    """Where a run goes."""

    def parameters(self, values: Mapping[str, str]) -> None:
        """What the run was."""
        ...

    def numbers(self, values: Sequence[Number]) -> None:
        """What the run gave."""
        ...

    def close(self, *, complete: bool) -> None:
        """Nothing more comes; ``complete`` says whether everything came."""
        ...


def refuse_simulated(result: Mapping[str, Any]) -> None:
    """Refuse a simulation's result: it holds exact accuracies of images that may be private.

    Raises:
        PrivacyError: SIMULATED_RESULT.
    """
    if result["transport"] != DEPLOYED:
        raise PrivacyError(
            code="SIMULATED_RESULT",
            message="This is a simulation: its accuracies are exact and no noise protects the images behind them.",
            advice="Add --send-exact if everybody who reads the tracker may know them.",
        )


def track(result: Mapping[str, Any], tracker: Tracker) -> None:
    """Hand a run to a tracker and close it.

    Args:
        result: what result.json holds.
        tracker: empty.
    """
    complete = False
    try:
        tracker.parameters(parameters_of(result))
        tracker.numbers(list(numbers_of(result)))
        complete = True
    finally:
        tracker.close(complete=complete)


def parameters_of(result: Mapping[str, Any]) -> dict[str, str]:
    """The experiment's configuration by dotted keys (``privacy.target_epsilon``), its digest, and versions."""
    facts = {key: result[key] for key in ("date", "transport", "experiment_digest", "seed", "versions")}
    return {name.replace("/", "."): str(value) for name, value in _leaves({**result["config"], **facts})}


def numbers_of(result: Mapping[str, Any]) -> Iterator[Number]:
    """Every finite number of the rounds, then of the end.

    Accuracies are from 0 to 1. Those of single sites (``round/metrics/SITE/...``) are exact; they exist on public data
    and in simulations alone. An infinite epsilon is left out.
    """
    last = len(result["rounds"])
    for entry in result["rounds"]:
        yield from _numbers({"round": {key: entry[key] for key in ROUND_KEYS if key in entry}}, entry["round"])
    yield from _numbers({key: result[key] for key in RESULT_KEYS if key in result}, last)
    scores = {row["candidate"]: row["value"] for row in result.get("scores") or ()}
    epsilons = {row["adversary"]: row["epsilon"] for row in result["privacy"]["epsilons"]}
    yield from _numbers({"noised_scores": scores, "epsilon": epsilons}, last)


def _numbers(table: Mapping[str, Any], step: int) -> Iterator[Number]:
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
    """One new run of an MLflow experiment; what is not complete ends as ``FAILED``.

    Args:
        uri: of the tracking server, or of a database: ``sqlite:///mlflow.db``.
        experiment: MLflow's own word for a collection of runs; made where there is none.
        run: the run's name.

    Raises:
        ConfigError: PACKAGE_MISSING.
        DeploymentError: TRACKER_FAILED, here or in a method.
    """

    def __init__(self, uri: str, experiment: str, run: str) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise _missing("mlflow") from None
        self._uri, self._failure = uri, MlflowException
        with self._translated():
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            within = found.experiment_id if found else self._client.create_experiment(experiment)
            self._run: str = self._client.create_run(within, run_name=run).info.run_id

    def parameters(self, values: Mapping[str, str]) -> None:
        """See ``Tracker``; longer values than MLflow takes end in three dots."""
        from mlflow.entities import Param

        rows = [Param(name, _shortened(value)) for name, value in values.items()]
        with self._translated():
            for at in range(0, len(rows), MOST_PARAMETERS):
                self._client.log_batch(self._run, params=rows[at : at + MOST_PARAMETERS], synchronous=True)

    def numbers(self, values: Sequence[Number]) -> None:
        """See ``Tracker``."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        rows = [Metric(name, value, now, step) for name, value, step in values]
        with self._translated():
            for at in range(0, len(rows), MOST_METRICS):
                self._client.log_batch(self._run, metrics=rows[at : at + MOST_METRICS], synchronous=True)

    def close(self, *, complete: bool) -> None:
        """See ``Tracker``."""
        if complete:
            with self._translated():
                self._client.set_terminated(self._run, "FINISHED")
        else:
            with suppress(self._failure):  # what went wrong before is the error to read
                self._client.set_terminated(self._run, "FAILED")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._failure as error:
            raise DeploymentError(
                code="TRACKER_FAILED",
                message=f"MLflow at {self._uri} does not take the run ({first_line(error)}).",
                advice="Is it in reach? Credentials are MLflow's own: MLFLOW_TRACKING_TOKEN.",
            ) from None


def _shortened(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 3]}..."


class TensorboardTracker:
    """A folder of event files, which becomes one run of TensorBoard's.

    Raises:
        ConfigError: PACKAGE_MISSING.
        StateError: TRACKED_ALREADY, the folder holds event files, and TensorBoard would draw both runs as one.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        if any(folder.glob("events.out.tfevents.*")):
            raise StateError(
                code="TRACKED_ALREADY",
                message=f"{folder} holds a run already.",
                advice="Move it away, or give --tensorboard another folder.",
            )
        self._writer = SummaryWriter(str(folder))

    def parameters(self, values: Mapping[str, str]) -> None:
        """See ``Tracker``."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        self._writer.add_text("experiment", f"| setting | value |\n|---|---|\n{rows}", 0)

    def numbers(self, values: Sequence[Number]) -> None:
        """See ``Tracker``."""
        for name, value, step in values:
            self._writer.add_scalar(name, value, step)

    def close(self, *, complete: bool) -> None:
        """See ``Tracker``."""
        self._writer.close()


def _missing(extra: str) -> ConfigError:
    return ConfigError(
        code="PACKAGE_MISSING",
        message=f"The package for {extra} is not installed.",
        advice=f"pip install 'dpfpl-server[{extra}]'",
    )
