"""Agents to be killed: one parent process for the session, whose forks start in hundredths of a second."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode puts no folder there

from killable import Driver, Site


@pytest.fixture(scope="session")
def driver():
    made = Driver()
    yield made
    made.close()


@pytest.fixture
def short_folder():
    with tempfile.TemporaryDirectory(prefix="dpfpl") as name:  # short: a socket's path may have a hundred bytes
        yield Path(name)


@pytest.fixture
def site(driver, short_folder):
    return Site(driver, short_folder)
