"""Models on another device. The tests proper are in ``on_another_device.py`` and run in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dpfpl_client.models.generative.language import share_of_memory
from dpfpl_client.models.loader import CPU, device_named
from dpfpl_common.errors import ModelError

TESTS = Path(__file__).with_name("on_another_device.py")


@pytest.mark.slow
def test_models_compute_on_another_device_and_take_and_give_on_the_processor():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=clean)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_a_device_that_is_not_there_is_named():
    for name in ("cuda:63", "toaster"):
        with pytest.raises(ModelError, match=f"'{name}'") as caught:
            device_named(name)
        assert caught.value.code == "DEVICE_NOT_THERE"


def test_stores_on_a_gpu_grow_with_its_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * 2**30, 80 * 2**30))
    assert share_of_memory(torch.device("cuda:0"), 2**28) == 10 * 2**30
    assert share_of_memory(CPU, 2**28) == 2**28
