"""The stand-in device, trusted as a GPU is that has passed its self-test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from standin.driver import StandIn

from neuzip.cuda import driver, trust


@pytest.fixture(scope="session")
def standin_driver() -> StandIn:
    return StandIn()


@pytest.fixture
def standin(standin_driver: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The driver in place of CUDA's, its record empty."""
    for record in (standin_driver.launches, standin_driver.kept):
        record.clear()
    standin_driver.waits, standin_driver.reason = 0, None
    passed = trust.Verdict(True, "taken for granted")
    verdicts = {(standin_driver, index): passed for index in range(standin_driver.count())}
    monkeypatch.setattr(trust, "_verdicts", verdicts)
    driver.install(standin_driver)
    yield standin_driver
    driver.install(None)
