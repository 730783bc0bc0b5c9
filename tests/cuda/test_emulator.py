"""The emulator itself: what it computes, what it makes visible, and each fault that it must report."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import CASES, Emulator, EmulatorError, Kind, load

WORDS = np.random.default_rng(0).integers(0, 256, 64).astype(np.uint32)
U32 = np.uint32


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return load()


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, U32)


FAULTS = [
    ("nz_test_two_collectives", Kind.DIVERGENCE, "__ballot_sync of lanes ffffffff at faults.cu:"),
    ("nz_test_two_lines", Kind.DIVERGENCE, "__ballot_sync of lanes ffffffff at faults.cu:"),
    ("nz_test_two_masks", Kind.DIVERGENCE, "of lanes fffffffe"),
    ("nz_test_one_sided_mask", Kind.DIVERGENCE, "of lanes ffff0008"),
    ("nz_test_two_barriers", Kind.DIVERGENCE, "waits in __syncthreads at faults.cu:"),
    ("nz_test_leave_early", Kind.DEADLOCK, "__syncwarp of lanes ffffffff"),
    ("nz_test_half_a_warp", Kind.DEADLOCK, "is not there"),
    ("nz_test_barrier_without_all", Kind.DEADLOCK, "has left"),
    ("nz_test_barrier_or_collective", Kind.DEADLOCK, "waits in __syncthreads"),
    ("nz_test_circle", Kind.DEADLOCK, "and so does everyone else"),
    ("nz_test_not_in_mask", Kind.MISUSE, "is not one of them"),
    ("nz_test_shuffle_outside", Kind.MISUSE, "reads lane 20, which is not one of them"),
    ("nz_test_misaligned", Kind.MISUSE, "a misaligned load at faults.cu:"),
    ("nz_test_endless", Kind.ENDLESS, "runs after the 1000000 steps"),
    ("nz_test_endless_together", Kind.ENDLESS, "after the 1000000 steps"),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kernel", "kind", "message"), FAULTS, ids=[row[0] for row in FAULTS])
def test_fault(emulator: Emulator, kernel: str, kind: Kind, message: str, seed: int) -> None:
    """Reported with its kind and place, in any order; and the next launch is none the worse for it."""
    block = 48 if kernel == "nz_test_half_a_warp" else 64
    with pytest.raises(EmulatorError) as caught:
        emulator.launch(kernel, 1, block, [zeros(64)], seed=seed, steps=1_000_000)
    assert caught.value.kind is kind
    assert f"{kernel}, block (0, 0, 0): thread" in str(caught.value)
    assert message in str(caught.value)
    out = np.array([1] + [0] * 64, U32)
    emulator.launch("nz_test_uniform_branch", 1, 64, [out], seed=seed)
    assert set(out[1:]) == {0xAAAAAAAA}


def test_every_kernel_of_faults_is_tried(emulator: Emulator) -> None:
    sanitized = {
        "nz_test_race",
        "nz_test_race_of_stores",
        "nz_test_out_of_bounds",
        "nz_test_misaligned_store",
    }
    others = {"nz_test_wait_for_store", "nz_test_uniform_branch"}
    text = (CASES / "faults.cu").read_text(encoding="utf-8")
    kernels = {name for name in emulator.kernels() if f"NZ_KERNEL({name})" in text}
    assert kernels == {row[0] for row in FAULTS} | sanitized | others


@pytest.mark.parametrize("seed", range(1, 6))
def test_turns_end_while_a_thread_waits(emulator: Emulator, seed: int) -> None:
    out = zeros(2)
    emulator.launch("nz_test_wait_for_store", 1, 64, [out], seed=seed, steps=1_000_000)
    assert out.tolist() == [1, 1]


def order(emulator: Emulator, seed: int, grid: int = 1) -> list[int]:
    numbers = zeros(64 * grid)
    emulator.launch("nz_test_order", grid, 64, [zeros(1), numbers], seed=seed)
    assert sorted(numbers) == list(range(64 * grid))
    return numbers.tolist()


def test_order_follows_from_the_seed(emulator: Emulator) -> None:
    assert order(emulator, 0, 3) == list(range(192))
    orders = [order(emulator, seed, 3) for seed in range(1, 9)]
    assert orders == [order(emulator, seed, 3) for seed in range(1, 9)]
    assert len({tuple(each) for each in orders}) == 8
    assert len({each[0] // 64 for each in orders}) > 1, "blocks come in other orders too"
    warps = [[number // 32 for number in each] for each in orders]
    assert any(sorted(each) != each and sorted(each, reverse=True) != each for each in warps)


def test_turns_end_in_the_middle_of_work(emulator: Emulator) -> None:
    rounds = 500
    numbers = zeros(64 * rounds)
    emulator.launch("nz_test_turns", 1, 64, [zeros(1), numbers, U32(rounds)], seed=1)
    changes = np.count_nonzero(np.diff(numbers.astype(np.int64)))
    assert changes > 64 * rounds / 256, "as many turns as steps and their greatest length make"
    emulator.launch("nz_test_turns", 1, 64, [zeros(1), numbers, U32(rounds)], seed=0)
    assert np.array_equal(numbers, np.repeat(np.arange(64, dtype=U32), rounds))


def test_shared_memory_is_poisoned(emulator: Emulator) -> None:
    """For every block anew, with bytes that follow from the poison."""
    found = []
    for poison in (1, 1, 2):
        out = zeros(256)
        emulator.launch("nz_test_fresh_shared", 2, 64, [out], shared=256, poison=poison)
        assert np.count_nonzero(out) > 240
        assert len(np.unique(out)) > 240
        found.append(out.tobytes())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("seed", range(4))
def test_collectives(emulator: Emulator, seed: int) -> None:
    out = zeros(64 * 11)
    emulator.launch("nz_test_collectives", 1, 64, [WORDS, out], seed=seed)
    lane = np.arange(32)
    for warp, got in zip(WORDS.reshape(2, 32), out.reshape(2, 32, 11), strict=True):

        def bits(flags: np.ndarray) -> int:
            return sum(1 << int(i) for i in np.flatnonzero(flags))

        expected = [
            np.full(32, bits(warp % 2)),
            np.full(32, int(np.all(warp % 2))),
            np.full(32, int(np.any(warp > 200))),
            warp[(lane * 7 + 3) % 32],
            warp[np.where(lane < 5, lane, lane - 5)],
            warp[np.where(lane + 9 > 31, lane, lane + 9)],
            warp[lane ^ 12],
            np.array([bits(warp % 4 == value % 4) for value in warp]),
            warp[31 - lane] * 2,
            np.array([bits((warp % 3 == 0) & (lane % 2 == own % 2)) for own in lane]),
            np.ones(32),
        ]
        assert np.array_equal(got.T, np.array(expected))


@pytest.mark.parametrize("seed", range(8))
def test_barriers(emulator: Emulator, seed: int) -> None:
    values = np.arange(256, dtype=U32) ** 2
    out = zeros(256)
    emulator.launch("nz_test_barriers", 1, 256, [values, out], seed=seed)
    assert np.array_equal(out, np.cumsum(values))


def test_places(emulator: Emulator) -> None:
    grid, block = (3, 2, 2), (4, 3, 2)
    out = zeros(12 * 12 * 24)
    emulator.launch("nz_test_places", grid, block, [out], seed=5)
    expected = [
        (*thread[::-1], *index[::-1], *block, *grid)
        for index in np.ndindex(*grid[::-1])
        for thread in np.ndindex(*block[::-1])
    ]
    assert out.reshape(-1, 12).tolist() == [list(row) for row in expected]


def test_arithmetic(emulator: Emulator) -> None:
    generator = np.random.default_rng(1)
    pairs = [(0, 0), (1, 2**32 - 1), (2**31, 2**31 - 1), *generator.integers(0, 2**32, (20, 2)).tolist()]
    for a, b in pairs:
        for selector in (0x3210, 0x0404, 0x1010, 0x0123, 0x7654, 0xFEDC, 0x8A31):
            out = np.zeros(10, np.uint64)
            emulator.launch("nz_test_arithmetic", 1, 1, [U32(a), U32(b), U32(selector), out])
            joined = (b << 32 | a).to_bytes(8, "little")
            picked = [
                (255 if joined[nibble & 7] & 128 else 0) if nibble & 8 else joined[nibble & 7]
                for nibble in (selector >> 4 * i & 15 for i in range(4))
            ]
            signed = [x - 2**32 if x >= 2**31 else x for x in (a, b)]
            assert out.tolist() == [
                int.from_bytes(bytes(picked), "little"),
                a * b >> 32,
                (a << 32 | b) * (b << 32 | a) >> 64,
                a.bit_count(),
                32 - a.bit_length(),
                (a & -a).bit_length(),
                min(a, b),
                max(signed) % 2**32,
                a << 32 | min(a, b),
                min(a, b) << 32 | a,
            ]


def test_arguments(emulator: Emulator) -> None:
    out = np.zeros(2, np.uint64)
    good = [out, np.uint8(1), np.uint16(2), U32(3), np.uint64(1 << 40), np.int32(-5), np.float32(0.75)]
    emulator.launch("nz_test_arguments", 1, 1, [*good, np.float64(2.125)])
    assert out.tolist() == [(1 << 40) + 6, -5 + 3 + 17]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([U32(0)], "1 arguments, not 2"),
        ([zeros(1), zeros(64), U32(0)], "3 arguments, not 2"),
        ([zeros(1), U32(0)], "argument 1 has 4 bytes, not 8"),
    ],
)
def test_wrong_arguments(emulator: Emulator, arguments: list[np.ndarray], message: str) -> None:
    with pytest.raises(EmulatorError, match=f"misuse: nz_test_order: {message}"):
        emulator.launch("nz_test_order", 1, 64, arguments)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0, 1, 1), 64, 0, "no such grid"),
        ((1, 65536, 1), 64, 0, "no such grid"),
        (1, (0, 1, 1), 0, "no such block"),
        (1, (1, 1, 65), 0, "no such block"),
        (1, (64, 32, 1), 0, "more than 1024 threads"),
        (1, 64, (227 << 10) + 1, "more dynamic shared memory"),
    ],
)
def test_wrong_sizes(
    emulator: Emulator,
    grid: int | tuple[int, int, int],
    block: int | tuple[int, int, int],
    shared: int,
    message: str,
) -> None:
    with pytest.raises(EmulatorError, match=f"misuse: nz_test_order: {message}"):
        emulator.launch("nz_test_order", grid, block, [zeros(1), zeros(64)], shared=shared)


def test_unknown_kernel(emulator: Emulator) -> None:
    with pytest.raises(EmulatorError, match="misuse: nz_missing: no such kernel"):
        emulator.launch("nz_missing", 1, 32, [])
