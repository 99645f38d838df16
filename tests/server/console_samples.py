"""A run on disk as the strategy would leave it, moved on step by step, for the tests of the live page."""

import numpy as np

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.optimizer import OptimizerState
from dpfpl_server.runs.folder import Checkpoint, RunFolder

SITES = ("clinic-b", "hospital-a", "practice-c")

__all__ = ["SITES", "Run"]


class Run:
    """``runs/xrays-1`` with three sites and eight rounds."""

    def __init__(self, path):
        self.path = path
        self.connections = {"hospital-a": "online", "clinic-b": "offline", "practice-c": "online"}
        self.folder = RunFolder(path)
        self.experiment = Experiment(
            name=path.name,
            classes=("healthy", "pneumonia"),
            sites=SITES,
            model=ModelSettings(width=8),
            privacy=PrivacySettings(mechanism="per_step", noise_multiplier=4.0),
            rounds=RoundSettings(number=8, min_sites=3),
        )
        self.folder.begin(self.experiment)
        self.history = []
        self._alive = self.folder.server_pulse()
        self._alive.__enter__()
        (path.parent / "server.log").write_text(
            "".join(
                f"{12 + n // 60:02d}:{n % 60:02d}:07 INFO  a message of a site arrived, number {n}\n" for n in range(60)
            )
        )

    def close(self):
        """The strategy's program ends."""
        if self._alive is not None:
            self._alive.__exit__(None, None, None)
        self._alive = None

    def log(self, line):
        """Append to the server's log."""
        with (self.path.parent / "server.log").open("a") as file:
            file.write(line + "\n")

    def train(self, number, waiting):
        """The strategy waits for answers of a round."""
        self.folder.add_event({"phase": "TRAINING", "round": number, "waiting_for": waiting})

    def complete(self, number, dropped=None):
        """A round is done."""
        dropped = dropped or {}
        sites = [site for site in SITES if site not in dropped]
        entry = {
            "round": number,
            "seconds": 2.0 + number / 10,
            "bytes_up": 7000,
            "bytes_down": 9000,
            "sites": sites,
            "dropped": dropped,
            "codes": {site: why.partition(":")[0] for site, why in dropped.items()},
            "metrics": {
                site: {
                    "personal_local": 0.6 + 0.04 * (number - 1) + 0.02 * SITES.index(site),
                    "global_local": 0.6 + 0.015 * (number - 1),
                    "personal_neighbour": 0.62 - 0.01 * (number - 1),
                }
                for site in sites
            },
        }
        self.history.append(entry)
        zeros = np.zeros((4, 8))
        self.folder.save_checkpoint(
            Checkpoint(number, zeros.astype("<f4"), OptimizerState(zeros, zeros, number), tuple(self.history))
        )
        self.folder.add_event({"phase": "ROUND_DONE", **entry})
