// Frequency tables (§4.2, §4.3) in shared memory, in forms that answer in one or two loads: which symbol has
// this slot, and where is the state then. A warp has its own, so that no warp waits for another.
#ifndef NEUZIP_CUDA_LOOKUP_H
#define NEUZIP_CUDA_LOOKUP_H

#include "bytes.cuh"

namespace nz {

constexpr uint32_t kMainEntries = 255;       // of 256 slots
constexpr uint32_t kRankEntries = 255 + 16;  // and those of 16 slots in the last 256
constexpr uint32_t kRankTableBytes = 36;
constexpr uint32_t kByteTableHeader = 36;
constexpr uint32_t kBuckets = 2048;
constexpr uint32_t kBucketWidth = (1u << 31) / (kBuckets / 2);  // of slots aligned to the left
constexpr uint32_t kSymbolMask = 0x3ff;

struct Lookup {
  uint32_t entries[kRankEntries];  // as many as ranks need; bytes need 257
  uint8_t buckets[kBuckets];
  uint32_t bits;  // of a byte table
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

// An entry of a byte table: its start at the top, aligned to the left, and its symbol, or its head (§4.6), in
// the low bits. One more ends the last. Differences are those of the starts: modulo 2^32, where the end is 0,
// and with low bits that decide nothing, because they ascend with the starts and are all set in what is
// looked for.
struct ByteTable {
  const Lookup *lookup;
  uint32_t bits;

  // All lanes together. The low 10 bits are the symbol or head.
  __device__ __forceinline__ uint32_t take(uint32_t *state) const {
    const uint32_t x = *state, shift = 32 - bits, slot = x << shift;
    // The bucket knows the symbol of its first slot; the slot's is that or one soon after.
    const uint32_t *at = lookup->entries + lookup->buckets[slot / kBucketWidth];
    uint32_t entry = at[0], width = at[1] - entry, offset = (slot | kSymbolMask) - entry;
    if (__any_sync(kAll, offset >= width)) {
#pragma unroll 1
      do {
        if (offset >= width) {
          at++;
          entry += width;
          offset -= width;
          width = at[1] - entry;
        }
      } while (__any_sync(kAll, offset >= width));
    }
    *state = (width >> shift) * (x >> bits) + (offset >> shift);
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

// A serialised table whose length has been checked, aligned to 4. False if it breaks a rule. `first` is the
// head of symbol 0 in a joint table, else 0.
__device__ __forceinline__ bool load_byte_table(const uint8_t *bytes, uint32_t first, Lookup *lookup) {
  const uint32_t lane = lane_id(), bits = __ldg(bytes), count = load_u16(bytes + 2);
  if (bits < 12 || bits > 14 || __ldg(bytes + 1) || count < 2 || count > 256) return false;
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
  for (uint32_t s = 0, i = 0; s < 8; s++) {
    if (!(present >> s & 1)) continue;
    lookup->entries[index + i] = start << (32 - bits) | (first + 8 * lane + s);
    start += load_u16(frequency + 2 * i++);
  }
  if (lane == 0) {
    lookup->entries[count] = kSymbolMask;
    lookup->bits = bits;
  }
  __syncwarp();
#pragma unroll 1
  for (uint32_t b = lane; b < kBuckets; b += kWarp) {
    const uint32_t slot = b * kBucketWidth | kSymbolMask;
    uint32_t low = 0, high = count;
#pragma unroll 1
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      if (lookup->entries[middle] <= slot)
        low = middle;
      else
        high = middle;
    }
    lookup->buckets[b] = static_cast<uint8_t>(low);
  }
  __syncwarp();
  return true;
}

}  // namespace nz

#endif
