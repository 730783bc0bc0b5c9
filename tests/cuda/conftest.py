"""The stand-in device, or this machine's GPUs (hardware.py), trusted as one is that has passed its self-test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hardware import WANTED, Gpus, Recorded
from standin.driver import StandIn

from neuzip.cuda import driver, trust

collect_ignore = [] if WANTED else ["test_hardware.py"]


@pytest.fixture(scope="session")
def standin_driver() -> StandIn:
    if WANTED:
        pytest.skip("about the stand-in device, and the GPU was asked for")
    return StandIn()


@pytest.fixture(scope="session")
def gpu_driver(request: pytest.FixtureRequest) -> Gpus:
    return Recorded() if WANTED else request.getfixturevalue("standin_driver")


@pytest.fixture
def gpu(gpu_driver: Gpus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpus]:
    """The driver in place of CUDA's, its record empty."""
    gpu_driver.clear()
    passed = trust.Verdict(True, "taken for granted")
    verdicts = {(gpu_driver, index): passed for index in range(gpu_driver.count())}
    monkeypatch.setattr(trust, "_verdicts", verdicts)
    driver.install(gpu_driver)
    yield gpu_driver
    driver.install(None)


@pytest.fixture
def standin(standin_driver: StandIn, gpu: Gpus) -> StandIn:
    """For what can be shown on the stand-in device only."""
    assert gpu is standin_driver
    return standin_driver
