"""neuzip.cuda.self_test for a stand-in device: ``python selftest.py INDEX LIBRARY``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from neuzip.cuda import driver, self_test  # noqa: E402
from standin.driver import StandIn  # noqa: E402

driver.install(StandIn(kernels=Path(sys.argv[2])))
self_test.main(int(sys.argv[1]))
