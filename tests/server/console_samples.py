"""A run on disk as the strategy would leave it, moved on step by step, for the tests of the live page."""

import server_samples
from server_samples import make_experiment

from dpfpl_server.runs.folder import RunFolder

SITES = ("clinic-b", "hospital-a", "practice-c")

__all__ = ["SITES", "Run"]


class Run:
    """``runs/xrays-1`` with three sites and eight rounds."""

    def __init__(self, path):
        self.path = path
        self.connections = {"hospital-a": "online", "clinic-b": "offline", "practice-c": "online"}
        self.folder = RunFolder(path)
        self.experiment = make_experiment(
            SITES,
            name=path.name,
            classes=("healthy", "pneumonia"),
            noise_multiplier=4.0,
            rounds={"number": 8, "min_sites": 3},
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
        metrics = {
            site: {
                "personal_local": 0.56 + 0.04 * number + 0.02 * place,
                "global_local": 0.585 + 0.015 * number,
                "personal_neighbour": 0.63 - 0.01 * number,
            }
            for place, site in enumerate(SITES)
            if site not in (dropped or {})
        }
        more = {"seconds": 2.0 + number / 10, "bytes_up": 7000, "bytes_down": 9000, "metrics": metrics}
        entry = server_samples.entry(number, SITES, dropped, **more)
        self.history.append(entry)
        server_samples.keep(self.folder, *self.history)
        self.folder.add_event({"phase": "ROUND_DONE", **entry})
