// Frequency tables (§4.2, §4.3) in shared memory, in forms that answer without a search: which symbol has
// this slot, and where is the state then. A warp has its own, so that no warp waits for another.
#ifndef NEUZIP_CUDA_LOOKUP_H
#define NEUZIP_CUDA_LOOKUP_H

#include "bytes.cuh"

namespace nz {

constexpr uint32_t kMainEntries = 255;       // of 256 slots
constexpr uint32_t kRankEntries = 255 + 16;  // and those of 16 slots in the last 256
constexpr uint32_t kRankTableBytes = 36;
constexpr uint32_t kByteTableHeader = 36;
constexpr uint32_t kByteEntries = 256;
constexpr uint32_t kBlockSlots = 32;  // a bit each
constexpr uint32_t kBlocks = (1u << 14) / kBlockSlots;

struct Lookup {
  uint32_t entries[kRankEntries];  // as many as ranks need; bytes need kByteEntries
  uint32_t starts[kBlocks];  // of a byte table: bit k of a block is set if a symbol starts at its slot k + 1
  uint8_t last[kBlocks];     // and which entry has the block's last slot
  uint32_t bits;
};

// An entry of a rank table: frequency / 16 << 20 | start / 16 << 8 | symbol.
struct RankTable {
  const Lookup *lookup;

  // Takes a symbol from the state, which then lacks a word if it is below 2^16. The low byte is the symbol.
  __device__ __forceinline__ uint32_t take(uint32_t *state) const {
    const uint32_t x = *state, slot = x & 0xffff;
    // Both forms of the index are right where they are the larger one.
    const int main = static_cast<int>(slot >> 8), fine = static_cast<int>(slot >> 4) - (16 * 255 - 255);
    const uint32_t entry = lookup->entries[max(main, fine)];
    // frequency · (x >> 16): the high half of a product whose factors have it in their high halves.
    *state = __umulhi(entry & 0xfff00000, x & 0xffff0000) + slot - (entry >> 4 & 0xfff0);
    return entry;
  }
};

// An entry of a byte table: frequency << 20 | start modulo 4096 << 8 | symbol. Twelve bits of the start
// suffice, since a slot is less than a frequency, at most 4095 (§4.3), from it.
struct ByteTable {
  const Lookup *lookup;
  uint32_t bits;

  // As that of a rank table.
  __device__ __forceinline__ uint32_t take(uint32_t *state) const {
    const uint32_t x = *state, block = (x & ((1u << bits) - 1)) / kBlockSlots;
    // The slot's entry is as many before that of the block's last slot as symbols start between the two. The
    // shift is by x modulo 32.
    const uint32_t between = __funnelshift_r(lookup->starts[block], 0, x);
    const uint32_t entry = lookup->entries[lookup->last[block] - __popc(between)];
    *state = (entry >> 20) * (x >> bits) + ((x - (entry >> 8)) & 0xfff);
    return entry;
  }
};

// A valid serialised table, aligned to 4.
__device__ __forceinline__ void load_rank_table(const uint8_t *bytes, Lookup *lookup) {
  const uint32_t lane = lane_id(), ranks = __ldg(bytes), main = __ldg(bytes + 1);
  const bool used = lane < ranks && lane < 16;
  const uint32_t symbol = used ? __ldg(bytes + 4 + lane) : 0, weight = used ? __ldg(bytes + 20 + lane) : 0;
  const uint32_t width = lane < main ? 256 : 16;
  uint32_t total;
  const uint32_t start = sum_below(weight * width, &total);
  const uint32_t entry = weight * (width / 16) << 20 | start / 16 << 8 | symbol;
  const uint32_t first = lane < main ? start / 256 : kMainEntries + (start - 256 * kMainEntries) / 16;
  __syncwarp();  // nobody reads the table before
#pragma unroll 1
  for (uint32_t r = 0; r < 16; r++) {
    const uint32_t value = __shfl_sync(kAll, entry, r), from = __shfl_sync(kAll, first, r);
    const uint32_t n = __shfl_sync(kAll, weight, r);
#pragma unroll 1
    for (uint32_t i = from + lane; i < from + n && i < kRankEntries; i += kWarp) lookup->entries[i] = value;
  }
  __syncwarp();
}

// The length of a byte table of which `left` bytes are there, or 0.
__device__ __forceinline__ uint32_t byte_table_size(const uint8_t *bytes, uint32_t left) {
  if (left < kByteTableHeader) return 0;
  const uint32_t size = kByteTableHeader + 2 * load_u16(bytes + 2);
  return size <= left ? size : 0;
}

// The blocks of a table whose starts are marked at their own slots, turned by one: a block's bit 31 is its
// first slot. What starts there is before every slot of the block, and has told what it had to when `last` is
// known.
__device__ __forceinline__ void finish_blocks(uint32_t bits, Lookup *lookup) {
  const uint32_t own = (1u << bits) / kBlockSlots / kWarp, first = own * lane_id();
  uint32_t sum = 0, total;
#pragma unroll 1
  for (uint32_t b = first; b < first + own; b++) sum += __popc(lookup->starts[b]);
  uint32_t started = sum_below(sum, &total);
#pragma unroll 1
  for (uint32_t b = first; b < first + own; b++) {
    const uint32_t starts = lookup->starts[b];
    started += __popc(starts);
    lookup->last[b] = static_cast<uint8_t>(started - 1);
    lookup->starts[b] = starts & 0x7fffffff;
  }
}

// A serialised table whose length has been checked, aligned to 4. False if it breaks a rule.
__device__ __forceinline__ bool load_byte_table(const uint8_t *bytes, Lookup *lookup) {
  const uint32_t lane = lane_id(), bits = __ldg(bytes), count = load_u16(bytes + 2);
  if (bits < 12 || bits > 14 || __ldg(bytes + 1) || count < 2 || count > kByteEntries) return false;
  // A lane has eight symbols.
  const uint32_t present = __ldg(bytes + 4 + lane);
  uint32_t found, sum = 0, total;
  const uint32_t index = sum_below(__popc(present), &found);
  if (found != count) return false;
  const uint8_t *const frequency = bytes + kByteTableHeader + 2 * index;
  bool good = true;
#pragma unroll 1
  for (uint32_t i = 0, own = static_cast<uint32_t>(__popc(present)); i < own; i++) {
    const uint32_t f = load_u16(frequency + 2 * i);
    good = good && f >= 1 && f <= 4095;
    sum += f;
  }
  uint32_t start = sum_below(sum, &total);
  if (!__all_sync(kAll, good) || total != 1u << bits) return false;
#pragma unroll 1
  for (uint32_t b = lane; b < kBlocks; b += kWarp) lookup->starts[b] = 0;
  __syncwarp();
#pragma unroll 1
  for (uint32_t s = 0, i = 0; s < 8; s++) {
    if (!(present >> s & 1)) continue;
    const uint32_t f = load_u16(frequency + 2 * i);
    lookup->entries[index + i++] = f << 20 | (start & 0xfff) << 8 | (8 * lane + s);
    atomicOr(&lookup->starts[start / kBlockSlots], 1u << (start - 1) % kBlockSlots);
    start += f;
  }
  if (lane == 0) lookup->bits = bits;
  __syncwarp();
  finish_blocks(bits, lookup);
  __syncwarp();
  return true;
}

}  // namespace nz

#endif
