"""A process whose user presses Ctrl-C, again and again, as in a notebook: KeyboardInterrupt before one line of Python
after another, of neuzip and of what it calls.

Arguments: a folder, and of how many lines one is tried. Fails if anything but KeyboardInterrupt comes out, a file is
left, or memory is damaged.
"""

from __future__ import annotations

import itertools
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from safetensors_file import build, model

import neuzip.numpy
from neuzip import compress_file, decompress_file, verify_file


class Interrupt:
    """Raises KeyboardInterrupt before the line of that number that is run in the block, by this thread.

    Or before the next: a `with` is a line once more at its end, when a signal can only come within __exit__.
    """

    def __init__(self, at: int) -> None:
        self.left = at

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.left -= 1
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno) if self.left <= 0 else ""
            if line and not line.lstrip().startswith("with "):
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace

    def __enter__(self) -> Interrupt:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def works(folder: Path) -> dict[str, Callable[[], object]]:
    """What is interrupted, and files for it."""
    original = build(model(["BF16", "F32", "U8", "I64"]), {"format": "pt"})
    plain, packed, archive = (folder / name for name in ("a.safetensors", "b.safetensors", "c.nz"))
    plain.write_bytes(original)
    array = folder / "a.npy"
    np.save(array, np.random.default_rng(0).normal(0, 0.02, 40_000).astype(np.float32))
    compress_file(plain, packed)
    compress_file(array, archive)
    state = neuzip.numpy.load_file(packed)

    def same(left: dict[str, np.ndarray]) -> None:
        assert left.keys() == state.keys()
        assert all(left[name].tobytes() == state[name].tobytes() for name in state)

    def restore(source: Path, original: Path) -> None:
        out = folder / "out"
        decompress_file(source, out, force=True)
        assert out.read_bytes() == original.read_bytes()

    def open_one() -> None:
        with neuzip.safe_open(packed, "np") as file:
            for name in state:
                file.get_tensor(name)

    return {
        "compress": lambda: compress_file(plain, folder / "out", force=True),
        "compress an archive": lambda: compress_file(array, folder / "out", force=True),
        "decompress": lambda: restore(packed, plain),
        "decompress an archive": lambda: restore(archive, array),
        "verify": lambda: verify_file(packed),
        "load": lambda: same(neuzip.numpy.load_file(packed)),
        "save": lambda: same(neuzip.numpy.load(neuzip.numpy.save(state))),
        "open": open_one,
    }


def main(folder: Path, step: int) -> None:
    tasks = works(folder)
    for work in tasks.values():
        work()  # imports, and what is kept for the next call
    there = {*folder.iterdir()}
    for name, work in tasks.items():
        tried = 0
        for at in itertools.count(1 + len(name) % step, step):
            try:
                with Interrupt(at) as interrupt:
                    work()
            except KeyboardInterrupt:
                tried += 1
            # A lock that was just made may stay; the next call takes no notice of it.
            for left in {*folder.iterdir()} - there:
                assert left.suffix == ".lock", f"{name}, line {at}: {left.name} is left"
            if interrupt.left > 0:
                break
        work()
        print(f"{name}: {tried} of {at - interrupt.left} lines", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
