"""Agents to be killed: one parent process for the session, whose forks start in hundredths of a second."""

import pytest
from killable import Driver, Site


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    made = Driver(tmp_path_factory.mktemp("driver"))
    yield made
    made.close()


@pytest.fixture
def site(driver):
    yield Site(driver, driver.folder())
    if driver.shim is not None:
        driver.shim.set()
