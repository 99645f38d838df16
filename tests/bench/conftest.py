"""The embedded model, the command line, and a few coloured pictures."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch
from PIL import Image
from typed_commands import typed

from dpfpl_bench import cli
from dpfpl_bench.sweep import sweep
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import DpfplError

COLOURS = {"blue sky": (40, 60, 220), "grass": (30, 180, 40), "rust": (190, 80, 20)}


@pytest.fixture(scope="session")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


@pytest.fixture
def bench(monkeypatch, capfd):
    """Types ``dpfpl-bench ...``; gives exit code, stdout and stderr."""

    threads = torch.get_num_threads()
    yield typed("dpfpl-bench", cli, monkeypatch, capfd, width=400)
    torch.set_num_threads(threads)


class OneProcess:
    """A pool that works here and at once; one pool of processes is started in test_sweep."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, call, *arguments):
        future = Future()
        try:
            future.set_result(call(*arguments))
        except DpfplError as error:
            future.set_exception(error)
        return future


@pytest.fixture
def in_one_process(monkeypatch):
    """Sweeps do their runs here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", OneProcess)


@pytest.fixture(scope="session")
def paint():
    """Writes noisy pictures of one colour for each class into a folder; gives (path, class) of each."""
    rng = np.random.default_rng(0)

    def write(folder, count, names=COLOURS):
        made = []
        for name in names:
            (folder / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
                made.append((folder / name / f"{number}.png", name))
                Image.fromarray(pixels).save(made[-1][0])
        return made

    return write
