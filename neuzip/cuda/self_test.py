"""The self-test of a device: ``python -m neuzip.cuda.self_test INDEX`` prints a verdict (neuzip.cuda.trust) as JSON.

Golden frames and larger ones are decoded there and compared with the CPU, damaged ones must be refused, weights are
encoded to the CPU's bytes, and multiplied with while they are decoded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from neuzip import frame as frames
from neuzip.codec import LEVELS, Coding, Options
from neuzip.cuda.decoding import Run, decode, whole
from neuzip.cuda.driver import current
from neuzip.cuda.encoding import encode_many
from neuzip.cuda.jobs import MATVEC_BATCH, MATVEC_CHUNK_LOG2
from neuzip.cuda.kernels import upload
from neuzip.cuda.matvec import multiply
from neuzip.cuda.placed import chunk_records, place
from neuzip.cuda.trust import Verdict
from neuzip.errors import CorruptFrame, NeuzipError
from neuzip.layouts import DTYPES
from neuzip.torch import dtype_of

_COUNTS = ((1 << 16, 16), (3 << 10, 10), ((1 << 11) + 1025, 10), (129, 10))
"""Units and chunk_log2 of the frames made here: one full chunk, several, several and a tail, and hardly any."""

_MATRIX = (123, 100)
"""Of a matrix made here, several chunks of which rows cross the ends."""


@dataclass(frozen=True)
class Case:
    """A frame, and its original bytes, or None if its chunks must be refused."""

    name: str
    frame: bytes
    original: bytes | None
    remade: bool = False
    """Whether this version's encoder makes the same frame."""

    def header(self) -> frames.Header | None:
        """None if the header is refused, or no kernel decodes the frame: that is the host's part."""
        try:
            header = frames.read_header(self.frame, whole=True)
            chunk_records(header)
        except NeuzipError:
            return None
        return header if header.coding is Coding.PLANES and header.size else None


def golden() -> Iterator[Case]:
    """The golden vectors of the format that are shipped with the package, good and bad."""
    vectors = _vectors()
    for path in sorted((vectors / "good").glob("*.nzf")):
        yield Case(path.stem, path.read_bytes(), path.with_suffix(".raw").read_bytes())
    for path in sorted((vectors / "bad").glob("*.nzf")):
        yield Case(path.stem, path.read_bytes(), None)


def _vectors() -> Path:
    package = Path(__file__).resolve().parent.parent
    installed = package / "formats" / "vectors"
    return installed if installed.is_dir() else package.parent / "formats" / "vectors"


def made() -> Iterator[Case]:
    """Frames of ordinary weights, of every layout with planes and both levels, from the CPU's encoder."""
    generator = np.random.default_rng(0)
    plain = [row for row in DTYPES.values() if row.layout.planes and row.bits == 8 * row.layout.width]
    for dtype in {row.layout.id: row for row in plain}.values():
        for level in ("default", "max"):
            for count, log2 in _COUNTS:
                data = _weights(generator, dtype.layout.width, count)
                coded = frames.encode(data, dtype, (count,), Options(level=level, chunk_log2=log2))
                yield Case(f"{dtype.name} {level} {count}", coded, data.tobytes(), remade=True)


def _weights(generator: np.random.Generator, width: int, count: int) -> npt.NDArray[np.uint8]:
    """Bytes of normally distributed units: doubles, or the high bytes of floats."""
    wide = generator.normal(0, 0.02, count)
    if width == 8:
        return wide.view(np.uint8)
    bytes_of = wide.astype(np.float32).view(np.uint8).reshape(-1, 4)
    return np.ascontiguousarray(bytes_of[:, 4 - width :]).reshape(-1)


def run(index: int) -> Verdict:
    """The verdict on a device, in this process."""
    device = torch.device(current().device_type, index)
    cases = [case for case in [*golden(), *made()] if case.header() is not None]
    good = [case for case in cases if case.original is not None]
    try:
        failure = (
            _decode_good(good, device)
            or _refuse_bad([case for case in cases if case.original is None], device)
            or _encode([case for case in good if case.remade], device)
            or _multiply(device)
        )
        return Verdict(failure is None, failure or f"{len(cases)} frames as on the CPU")
    except torch.OutOfMemoryError as error:
        return Verdict(False, f"no memory for the self-test: {error}", final=False)


def _decode_good(cases: Sequence[Case], device: torch.device) -> str | None:
    """All frames in one go."""
    runs = [_run(case, device) for case in cases]
    try:
        decode(runs).check()
    except CorruptFrame as error:
        return f"a good frame was refused: {error}"
    for case, run in zip(cases, runs, strict=True):
        if run.out.cpu().numpy().tobytes() != case.original:
            return f"{case.name} was decoded to other bytes than on the CPU"
    return None


def _refuse_bad(cases: Sequence[Case], device: torch.device) -> str | None:
    for case in cases:
        try:
            decode([_run(case, device)]).check()
        except CorruptFrame:
            continue
        return f"{case.name} was not refused"
    return None


def _encode(cases: Sequence[Case], device: torch.device) -> str | None:
    """Weights to the frames that the CPU made of them, those of a level and chunk size in one go."""
    chosen: dict[Options, list[tuple[Case, frames.Header]]] = {}
    for case in cases:
        header = case.header()
        assert header is not None
        options = Options(level=LEVELS[header.level], chunk_log2=header.chunk_log2)
        chosen.setdefault(options, []).append((case, header))
    for options, group in chosen.items():
        items = []
        for case, header in group:
            assert case.original is not None
            data = upload(np.frombuffer(case.original, np.uint8), device)
            items.append((data, header.dtype, header.shape))
        for (case, _), found in zip(group, encode_many(items, options), strict=True):
            if found.cpu().numpy().tobytes() != case.frame:
                return f"{case.name} was encoded to other bytes than on the CPU"
    return None


def _multiply(device: torch.device) -> str | None:
    """Matrices with one row and with as many as are multiplied at once, compared with sums in fp64."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        matrix = (torch.randn(*_MATRIX, generator=generator) * 0.02).to(dtype)
        [frame] = encode_many(
            [(matrix.to(device), dtype_of(dtype), matrix.shape)], Options(chunk_log2=MATVEC_CHUNK_LOG2)
        )
        for batch in (1, MATVEC_BATCH):
            x = torch.randn(batch, matrix.shape[1], generator=generator).to(dtype)
            y, pending = multiply(frame, x.to(device), len(matrix))
            pending.check()
            expected = x.double() @ matrix.double().t()
            # Rounding to bf16 moves a result by 2^-9 of itself, and no sum here is beyond 4.
            if not torch.allclose(y.cpu().double(), expected, rtol=2**-7, atol=2**-7):
                return f"products with a {dtype} matrix differ from the CPU's"
    return None


def _run(case: Case, device: torch.device) -> Run:
    header = case.header()
    assert header is not None
    frame = upload(np.frombuffer(case.frame, np.uint8), device)
    out = torch.empty(header.size, dtype=torch.uint8, device=device)
    return whole(frame, place(frame, header), out, case.name)


def main(index: int) -> None:
    json.dump(asdict(run(index)), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
