"""nz_split and nz_merge on the emulator: units to planes, and back to the same bytes."""

from __future__ import annotations

from emulator import replay
from planes import check_planes


def test_there_and_back() -> None:
    check_planes(replay(), (0, 1, 31, 255, 256, 257, 1000), (1, 2))
