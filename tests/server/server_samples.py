"""Small experiments, rounds on disk, Flower messages and a SuperLink in memory, for the tests of the server."""

import time
import uuid
from datetime import datetime

from flwr.app import Metadata

from dpfpl_common.experiment import (
    AggregationSettings,
    Experiment,
    ModelSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
)
from dpfpl_common.optimizer import OptimizerState
from dpfpl_server.runs.folder import Checkpoint
from dpfpl_server.sites.control import Node
from dpfpl_server.sites.register import Site


def make_experiment(sites=("north", "south"), *, width=8, rounds=None, prompt=None, aggregation=None, **settings):
    """Of two classes, under per_step with a noise multiplier of 1, all examples in every step, which is accounted for
    quickly; ``settings`` of [privacy], or name and classes.
    """
    privacy = {"mechanism": "per_step", "noise_multiplier": 1.0, "sample_rate": 1.0}
    named = {key: settings.pop(key) for key in ("name", "classes") if key in settings}
    return Experiment(
        **({"name": "pilot", "classes": ("cat", "dog")} | named),
        sites=sites,
        model=ModelSettings(width=width),
        prompt=PromptSettings(**(prompt or {})),
        privacy=PrivacySettings(**(privacy | settings)),
        aggregation=AggregationSettings(**(aggregation or {})),
        rounds=RoundSettings(**({"number": 3} | (rounds or {}))),
    )


def entry(number, sites=("north", "south"), dropped=None, **more):
    """A round as the strategy notes it; ``dropped`` says why, by site, the code before a colon."""
    dropped = dropped or {}
    return {
        "round": number,
        "seconds": 1.5,
        "bytes_up": 10,
        "bytes_down": 20,
        "sites": [site for site in sites if site not in dropped],
        "dropped": dropped,
        "codes": {site: why.partition(":")[0] for site, why in dropped.items()},
        "metrics": {},
    } | more


def keep(folder, *history):
    """Save these rounds as the folder's checkpoint."""
    state = OptimizerState.zeros(folder.experiment().context_shape)
    folder.save_checkpoint(Checkpoint(history[-1]["round"], state.first.astype("<f4"), state, history))


def metadata(node=1, number=1):
    """Of a train message of its own to that node."""
    return Metadata(1, uuid.uuid4().hex, 99, node, "", str(number), time.time(), 3600.0, "train")


def provisioned(*names, node=7, **more):
    """A register of sites that are known to a SuperLink."""
    return {name: Site(name, "key", "2026-01-01", node, f"ssh-ed25519 {name}", **more) for name in names}


def clock_at(moment):
    """Stands for ``datetime`` where it is that moment."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return moment.astimezone(tz)

    return Clock


class FakeControl:
    """A running SuperLink's Control API: node ids count up, ``status`` says by site what is not online."""

    def __init__(self):
        self.registered, self.status = {}, {}
        self.withdrawn = []
        self.last = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def nodes(self):
        return [Node(n, name, key, self.status.get(name, "online")) for n, (name, key) in self.registered.items()]

    def register(self, name, key):
        assert key not in self.withdrawn, "Flower refuses a key that was unregistered once"
        self.last += 1
        self.registered[self.last] = (name, key)
        return self.last

    def unregister(self, node):
        self.withdrawn.append(self.registered.pop(node)[1])

    @property
    def keys(self):
        return dict(self.registered.values())
