// The loops that are written once an instruction set, and the table through which everything else calls them.
//
// All instruction sets must produce identical bytes; tests/test_isa.py holds them to it. What a loop may read
// or write beyond its data is stated here and is the only such licence in the codec.
#ifndef NEUZIP_KERNELS_H
#define NEUZIP_KERNELS_H

#include <cstddef>
#include <cstdint>

#include "table.h"

namespace nz {

constexpr int kLanes = 32;            // lanes of a stream (spec §4.1)
constexpr uint32_t kLow = 1u << 16;   // lower bound of a state
constexpr int kMaxInterleave = 4;     // streams a decode loop may run side by side
constexpr int kEncodeInterleave = 2;  // streams an encode loop may
constexpr size_t kStepWords = 64;     // bytes of words one step of 32 symbols reads: one word a lane

// A stream being decoded. `next` may be unaligned.
struct DecodeStream {
  alignas(64) uint32_t state[kLanes];
  const uint8_t *next;
  uint8_t *symbols;  // where they go
  // Memory that is needed soon after: `reads` at a byte a symbol, `writes` at write_width bytes a symbol. The
  // loops fetch it into the cache while they compute; nothing is done with it, so the addresses may be any.
  uintptr_t reads = 0, writes = 0;
  size_t write_width = 0;
};

// A stream being encoded, from its last symbol to its first: words are placed below `next`.
struct EncodeStream {
  alignas(64) uint32_t state[kLanes];
  uint8_t *next;
  const uint8_t *symbols;
  // Memory that is needed after the stream, read_width bytes a symbol: fetched into the cache, as above.
  uintptr_t reads = 0;
  size_t read_width = 0;
};

// Decoders run `steps` steps of 32 symbols on `count` streams (1, 2 or 4), each with its table, writing
// 32 · steps bytes to the `symbols` of each. They do not check `next`: each step may advance it by 64 bytes
// and read 64 bytes at it, whatever the stream holds, so the caller keeps kStepWords · (steps + 1) readable
// bytes behind it.
using DecodeRank = void (*)(const RankTable *const *tables, DecodeStream *const *streams, int count,
                            size_t steps);
using DecodeByte = void (*)(const ByteTable *const *tables, DecodeStream *const *streams, int count,
                            size_t steps);

// Encoders run `steps` steps backwards, over symbols[0 … 32 · steps) of `count` streams (1 or 2), each with
// its table. Every symbol must have a frequency. encode_rank takes ranks, not plane bytes. Up to 64 bytes
// below the words they place may be overwritten.
using EncodeRank = void (*)(const RankTable *const *tables, EncodeStream *const *streams, int count,
                            size_t steps);
using EncodeByte = void (*)(const ByteTable *const *tables, EncodeStream *const *streams, int count,
                            size_t steps);

// Writes the rank of each of n plane bytes, kMissing for those without one; returns whether any is missing.
using ToRanks = bool (*)(const RankTable &table, const uint8_t *symbols, uint8_t *ranks, size_t n);

// The first of n symbols that has no frequency; n if all have one.
using FindMissing = size_t (*)(const ByteTable &table, const uint8_t *symbols, size_t n);

// Cuts n units into planes, and back (spec §3). Exactly n units are read and written.
using Split = void (*)(const uint8_t *units, uint8_t *const *planes, size_t n);
using Merge = void (*)(const uint8_t *const *planes, uint8_t *units, size_t n);

// The joint mode (spec §4.6) on whole blocks of 128 units: planes 0 and 1 from symbols and packed six-bit
// values, and back. split_joint writes symbol `fill` where a head lies outside the table and returns whether
// any did.
using MergeJoint = void (*)(const uint8_t *symbols, const uint8_t *six, uint8_t base, uint8_t *plane0,
                            uint8_t *plane1, size_t blocks);
using SplitJoint = bool (*)(const uint8_t *plane0, const uint8_t *plane1, uint8_t base, uint8_t fill,
                            uint8_t *symbols, uint8_t *six, size_t blocks);

struct Kernels {
  const char *name;
  int interleave;         // chunks to decode side by side, for the loops to run at their best: 1, 2 or 4
  int encode_interleave;  // the same of encoding: 1 or 2
  DecodeRank decode_rank;
  DecodeByte decode_byte;
  EncodeRank encode_rank;
  EncodeByte encode_byte;
  ToRanks to_ranks;
  FindMissing find_missing;
  // Of planes.h.
  Split split[2][4] = {};  // [rotate][log2 width]
  Merge merge[2][4] = {};
  MergeJoint merge_joint = nullptr;
  SplitJoint split_joint = nullptr;
  uint64_t (*checksum64)(const void *data, size_t size) = nullptr;
};

extern const Kernels kScalarKernels;
#if defined(NEUZIP_HAVE_AVX2)
extern const Kernels kAvx2Kernels;
#endif
#if defined(NEUZIP_HAVE_AVX512)
extern const Kernels kAvx512Kernels;
#endif
#if defined(NEUZIP_HAVE_NEON)
extern const Kernels kNeonKernels;
#endif

// The kernels in use (dispatch.cc).
const Kernels &kernels();

}  // namespace nz

#endif
