"""Seeded bugs: kernels changed in one place each, which the emulated tests must catch.

``python tests/cuda/mutants.py [NAME...]`` tries all, or those named, and says what caught each; it takes some minutes.
A change that makes no difference to any input is not in the list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chunk_cases import CHUNK_UNITS, Chunks, damaged, golden, matrix
from decoding import check
from emulator import ROOT, build
from encoding import check_encoding

SOURCES = ROOT / "csrc" / "cuda"
_OPTIONS = {
    "plain": (),
    "memory": ("-DNEUZIP_SANITIZE=address,undefined",),
    "threads": ("-DNEUZIP_SANITIZE=thread",),
}


@dataclass(frozen=True)
class Mutant:
    """``before`` of a file, which is there once, is replaced. under: the build that must catch it."""

    name: str
    file: str
    before: str
    after: str
    why: str
    under: str = "plain"

    def apply(self) -> str:
        """The file's text with the bug in it."""
        text = (SOURCES / self.file).read_text(encoding="utf-8")
        assert text.count(self.before) == 1, f"{self.name}: not once in {self.file}"
        return text.replace(self.before, self.after)


MUTANTS = [
    Mutant(
        "rank_fine_entry",
        "lookup.cuh",
        "16 * 255 - 255",
        "16 * 255 - 254",
        "slots of fine ranks are looked up one entry too low",
    ),
    Mutant(
        "rank_frequency_bits",
        "lookup.cuh",
        "entry & 0xfff00000",
        "entry & 0xfff0f000",
        "bits of the start take part in the product",
    ),
    Mutant(
        "byte_block",
        "lookup.cuh",
        "starts & 0x7fffffff",
        "starts",
        "what starts at a block's first slot counts among what starts behind its last",
    ),
    Mutant(
        "byte_last",
        "lookup.cuh",
        "static_cast<uint8_t>(started - 1)",
        "static_cast<uint8_t>(started)",
        "a block knows the symbol after its last",
    ),
    Mutant(
        "byte_start",
        "lookup.cuh",
        "& 0xfff);\n    return entry",
        "& 0x7ff);\n    return entry",
        "a slot 2048 or more behind its symbol's start is taken for another",
    ),
    Mutant(
        "byte_cleared",
        "lookup.cuh",
        "lookup->starts[b] = 0;\n  __syncwarp();",
        "lookup->starts[b] = 0;",
        "a lane marks a start before another lane clears it",
        "threads",
    ),
    Mutant(
        "head_bits",
        "merge.cuh",
        "(symbol & 0xff) << 6",
        "symbol << 6",
        "bits of the start take part in the head",
    ),
    Mutant(
        "lanes_below",
        "stream.cuh",
        "lower_((1u << lane_id()) - 1)",
        "lower_((2u << lane_id()) - 1)",
        "a lane counts itself among those that take words before it",
    ),
    Mutant(
        "idle_lane",
        "stream.cuh",
        "if (active) state_ = x;",
        "state_ = x;",
        "lanes behind the last unit decode on",
    ),
    Mutant(
        "word_beyond_end",
        "words.cuh",
        "min(max(static_cast<int>(end_ - at), 0), static_cast<int>(kBlockBytes))",
        "static_cast<int>(kBlockBytes)",
        "a stream's last block is copied from behind its chunk",
        under="memory",
    ),
    Mutant(
        "words_not_there",
        "words.cuh",
        "wait_for_copies<1>();",
        "wait_for_copies<3>();",
        "words may be used before they are there",
    ),
    Mutant(
        "words_overwritten",
        "words.cuh",
        "request(next_ / kBlockBytes + kRingBlocks);",
        "request(next_ / kBlockBytes + kRingBlocks + 1);",
        "the block of the next word is overwritten",
    ),
    Mutant(
        "words_of_the_stream_before",
        "words.cuh",
        "    wait_for_copies<0>();  // those of the stream before\n",
        "",
        "words of the stream before arrive in the ring of the next",
    ),
    Mutant(
        "words_still_read",
        "words.cuh",
        "    __syncwarp();  // nobody reads what is overwritten\n",
        "",
        "a lane that is behind may find its words overwritten",
        under="threads",
    ),
    Mutant(
        "words_left",
        "stream.cuh",
        " && words_.all_taken();",
        ";",
        "words that no symbol takes are not noticed",
    ),
    Mutant(
        "any_end",
        "stream.cuh",
        "(payload ? state_ >> 16 : state_ - kLow + 1) == 1",
        "state_ >> 16 == 1",
        "a stream without a payload may end in any state",
    ),
    Mutant(
        "any_beginning",
        "stream.cuh",
        "return __all_sync(kAll, state_ >= kLow);",
        "return __all_sync(kAll, true);",
        "states below 2^16 are taken",
    ),
    Mutant(
        "patch_twice",
        "chunk.cuh",
        "load_bytes2(patch - patch_bytes) < position",
        "load_bytes2(patch - patch_bytes) <= position",
        "two patches of one place are taken",
    ),
    Mutant(
        "patch_behind",
        "chunk.cuh",
        "position < units &&",
        "position <= units &&",
        "a patch writes behind the chunk's last unit",
        "memory",
    ),
    Mutant(
        "records_behind",
        "decode.cuh",
        "  if (size < kRecordBytes * W) return NZ_FAULT_CHUNK;\n",
        "",
        "the records of a chunk without room for them are read",
        "memory",
    ),
    Mutant(
        "padding_unseen",
        "chunk.cuh",
        "if (at_ == size_ || __ldg(chunk_ + at_)) return false;",
        "if (at_ == size_) return false;",
        "padding that is not zero is taken",
    ),
    Mutant(
        "param_unseen",
        "chunk.cuh",
        "|| (param && mode != kConstant)",
        "",
        "a parameter where none is allowed is taken",
    ),
    Mutant(
        "payload_place",
        "merge.cuh",
        "(p > 1 || i < count ? __ldg(plane(p) + i) : 0)",
        "__ldg(plane(p) + i)",
        "what follows plane 1 is taken for its last 64 bytes",
    ),
    Mutant(
        "payload_whole",
        "merge.cuh",
        "return W == 1 ? units : count;",
        "return units;",
        "whole batches reach into the payload",
    ),
    Mutant(
        "six_order",
        "merge.cuh",
        "const uint32_t sixes[4] = {b0 & 63, b1 & 63, b2 & 63, b0 >> 6 | b1 >> 6 << 2 | b2 >> 6 << 4};",
        "const uint32_t sixes[4] = {b0 & 63, b1 & 63, b2 & 63, b0 >> 6 | b1 >> 6 << 4 | b2 >> 6 << 2};",
        "two bit pairs of every fourth unit are exchanged",
    ),
    Mutant(
        "patch_bits",
        "merge.cuh",
        "~(static_cast<Type>(0xff) << kAt)",
        "~(static_cast<Type>(0xfe) << kAt)",
        "a patch leaves the old symbol's lowest bit",
    ),
    Mutant(
        "payload_limit",
        "decode.cuh",
        "(record.mode == kRaw && units >= kPayloadBytes)",
        "(record.mode == kRaw && units > kPayloadBytes)",
        "chunks of exactly 64 units are taken to have no payload",
    ),
    Mutant(
        "table_forgotten",
        "decode.cuh",
        "    bench->table = nullptr;\n    if (!take_local_table",
        "    if (!take_local_table",
        "a local table is taken for the frame's in the next chunk",
    ),
    Mutant(
        "chunk_longer",
        "decode.cuh",
        "return cursor.align() && !cursor.left() ?",
        "return cursor.align() ?",
        "bytes behind the last section are taken",
    ),
    Mutant(
        "six_missing",
        "decode.cuh",
        "good = good && !sixes[q];",
        "good = good && true;",
        "bits of units that are not there may be set",
    ),
    Mutant(
        "patches_early",
        "decode.cuh",
        "    if (s.payload) add_raw_payload<W>(stream.payload(), units, out);\n    __syncwarp();\n",
        "    if (s.payload) add_raw_payload<W>(stream.payload(), units, out);\n",
        "lanes patch units that others still write",
        "threads",
    ),
    Mutant(
        "status_by_all",
        "task.cuh",
        "  if (lane_id() != 0) return;\n",
        "",
        "all lanes write a task's status",
        "threads",
    ),
    Mutant(
        "any_bad",
        "task.cuh",
        "if (fault) atomicMin(reinterpret_cast<unsigned long long *>(first_bad), task);",
        "if (fault) *first_bad = task;",
        "the last bad task is reported, not the first",
    ),
    Mutant(
        "job_before",
        "task.cuh",
        "if (jobs[middle].first <= task)",
        "if (jobs[middle].first < task)",
        "a job's first chunk is taken for one of the job before",
    ),
    Mutant(
        "checksum_secret",
        "checksum.cu",
        "sum ^ sum >> 47 ^ kSecret[16 + own]",
        "sum ^ sum >> 47 ^ kSecret[15 + own]",
        "another secret after a block of stripes",
    ),
    Mutant(
        "renormalise_late",
        "encode.cuh",
        "x >> (32 - bits) >= frequency",
        "x >> (32 - bits) > frequency",
        "a state becomes too large by one",
    ),
    Mutant(
        "payload_early",
        "encode.cuh",
        "  __syncwarp();  // every lane has read before the bytes are overwritten\n",
        "",
        "the payload is overwritten while lanes still read it",
        "threads",
    ),
    Mutant(
        "place_order",
        "encode.cu",
        "job.chunks[chunk].offset = at + below;",
        "job.chunks[chunk].offset = at;",
        "the chunks of a batch of 32 begin at one place",
    ),
    Mutant(
        "compact_behind",
        "encode.cu",
        "i < c.size / 4; i",
        "i <= c.size / 4; i",
        "a word is copied behind each chunk",
        "memory",
    ),
]


def _cases() -> list[Chunks]:
    """Small ones of all widths, levels and kinds of data, with several chunks of some."""
    return list(matrix((1, 64, 257)))[::2] + list(matrix((2 * CHUNK_UNITS + 77,)))[::5]


def _decode(program: Path) -> None:
    check(program, [*golden("good"), *golden("bad")], [1])
    check(program, list(golden("bad")), [1], verify=False)
    check(program, _cases(), [2])
    # Many chunks of a tensor for each warp, tables of their own between uses of the tensor's.
    check(program, [case for case in matrix((9 * CHUNK_UNITS,)) if "skewed" in case.name], [3], grid=1)


def _damage(program: Path) -> None:
    sources = [case for case in matrix((301,)) if "noise" not in case.name]
    check(program, [case for source in sources for case in damaged(source, 12, seed=1)], [3], verify=False)


def _encode(program: Path) -> None:
    check_encoding(program, _cases(), [1])


def _tests(mutant: Mutant) -> Iterator[Callable[[Path], None]]:
    """The most likely first."""
    tests = [_decode, _damage, _encode]
    return iter([_encode, _decode] if mutant.file.startswith("encode") else tests)


def _stage(kind: str, mutant: Mutant | None) -> Path:
    """A copy of the kernels with a mutant; only files that differ are written, for the build's sake."""
    directory = ROOT / "build" / f"mutants-{kind}" / "kernels"
    directory.mkdir(parents=True, exist_ok=True)
    for source in SOURCES.glob("*.*"):
        is_changed = mutant is not None and source.name == mutant.file
        text = mutant.apply() if is_changed else source.read_text(encoding="utf-8")
        target = directory / source.name
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
    return directory


def program(kind: str, mutant: Mutant | None) -> Path:
    """cuda_replay with a mutant."""
    kernels = _stage(kind, mutant)
    quick = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O0 -g1")
    return build(f"mutants-{kind}", *quick, *_OPTIONS[kind], kernels=kernels) / "cuda_replay"


def caught_by(mutant: Mutant) -> str | None:
    """What a mutant's test has to say; None if it has been missed."""
    mutated = program(mutant.under, mutant)
    for test in _tests(mutant):
        try:
            test(mutated)
        except AssertionError as error:
            return str(error)
    return None


def check_unchanged(kind: str) -> None:
    """That the kernels as they are pass all tests."""
    right = program(kind, None)
    for test in (_decode, _damage, _encode):
        test(right)


def main(names: list[str]) -> int:
    missed = []
    for kind in _OPTIONS:
        if any(mutant.under == kind for mutant in MUTANTS if not names or mutant.name in names):
            check_unchanged(kind)
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        message = caught_by(mutant)
        lines = [] if message is None else message.splitlines()
        print(f"{mutant.name:20} {mutant.under:8} {_essence(lines) if lines else 'MISSED'}", flush=True)
        if message is None:
            missed.append(mutant.name)
    print(f"missed: {', '.join(missed)}" if missed else "all caught")
    return 1 if missed else 0


def _essence(lines: list[str]) -> str:
    """The line that names the fault."""
    telling = [
        line for line in lines if "SUMMARY" in line or "runtime error" in line or line.startswith("fault")
    ]
    return (telling or lines or ["an assertion"])[0].strip()[:150]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
