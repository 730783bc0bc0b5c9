"""Tools that a test needs and that not every machine has."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips the test, or fails it where nothing may be skipped: NEUZIP_REQUIRE_CROSS=1."""
    if os.environ.get("NEUZIP_REQUIRE_CROSS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
