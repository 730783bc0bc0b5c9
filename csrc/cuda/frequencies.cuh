// Frequency tables (§4.2, §4.3) as an encoder wants them, in a warp's shared memory: read from a table blob,
// or made for a plane of its own. Every number is the one that csrc/table.cc and csrc/chunk_encode.cc come
// to.
#ifndef NEUZIP_CUDA_FREQUENCIES_H
#define NEUZIP_CUDA_FREQUENCIES_H

#include "chunk.cuh"

namespace nz {

constexpr uint32_t kSymbols = 256;
constexpr uint32_t kNoSymbol = kSymbols;  // what a table can never have
constexpr uint32_t kLaneSymbols = kSymbols / kWarp;
constexpr uint32_t kLocalBits = 12;  // of a table of a plane's own
constexpr uint32_t kMostFrequent = 4095;

struct Frequencies {
  uint32_t entries[kSymbols + 1];  // frequency | start << 16; 0 where a symbol has none
  uint32_t bits;
  uint32_t fill;  // entry of the symbol that is coded in the place of one without a frequency
};

__device__ __forceinline__ void load_rank_frequencies(const uint8_t *bytes, Frequencies *table) {
  const uint32_t lane = lane_id(), ranks = __ldg(bytes), main = __ldg(bytes + 1);
  const bool used = lane < ranks;
  const uint32_t symbol = used ? __ldg(bytes + 4 + lane) : 0, weight = used ? __ldg(bytes + 20 + lane) : 0;
  const uint32_t frequency = weight * (lane < main ? 256 : 16);
  uint32_t total;
  const uint32_t entry = frequency | sum_below(frequency, &total) << 16;
  __syncwarp();  // nobody reads the table before
#pragma unroll 1
  for (uint32_t s = lane; s <= kSymbols; s += kWarp) table->entries[s] = 0;
  __syncwarp();
  if (used) table->entries[symbol] = entry;
  if (lane == 0) {
    table->bits = 16;
    table->fill = entry;
  }
  __syncwarp();
}

// Completes a table of which only the frequencies are there. Lane l has symbols 8 l … 8 l + 7.
__device__ __forceinline__ void complete_table(uint32_t bits, Frequencies *table) {
  const uint32_t first = kLaneSymbols * lane_id();
  uint32_t sum = 0, total;
  __syncwarp();  // nobody reads the frequencies before
#pragma unroll 1
  for (uint32_t s = first; s < first + kLaneSymbols; s++) sum += table->entries[s];
  uint32_t start = sum_below(sum, &total), best = ~0u;
#pragma unroll 1
  for (uint32_t s = first; s < first + kLaneSymbols; s++) {
    const uint32_t f = table->entries[s];
    table->entries[s] = f ? f | start << 16 : 0;
    start += f;
    best = min(best, (0xffff - f) << 8 | s);
  }
  best = least_of(best) & 0xff;  // the first of the most frequent symbols
  __syncwarp();
  if (lane_id() == 0) {
    table->entries[kNoSymbol] = 0;
    table->bits = bits;
    table->fill = table->entries[best];
  }
  __syncwarp();
}

__device__ __forceinline__ void load_byte_frequencies(const uint8_t *bytes, Frequencies *table) {
  const uint32_t lane = lane_id(), present = __ldg(bytes + 4 + lane);
  uint32_t count;
  const uint8_t *at = bytes + kByteTableHeader + 2 * sum_below(__popc(present), &count);
  __syncwarp();  // nobody reads the table before
#pragma unroll 1
  for (uint32_t s = 0; s < kLaneSymbols; s++) {
    const bool there = present >> s & 1;
    table->entries[kLaneSymbols * lane + s] = there ? load_u16(at) : 0;
    if (there) at += 2;
  }
  complete_table(__ldg(bytes), table);
}

// Counts the bytes of a plane, 64 of them every `stride`.
template <typename Plane>
__device__ __forceinline__ void count_bytes(const Plane &plane, uint32_t units, uint32_t stride,
                                            uint32_t *histogram) {
  __syncwarp();
#pragma unroll 1
  for (uint32_t s = lane_id(); s < kSymbols; s += kWarp) histogram[s] = 0;
  __syncwarp();
#pragma unroll 1
  for (uint32_t at = 0; at < units; at += stride) {
#pragma unroll
    for (uint32_t i = at + lane_id(); i < at + 64; i += kWarp)
      if (i < units) atomicAdd(&histogram[plane.at(i)], 1u);
  }
  __syncwarp();
}

// log2(value) · 2^16, rounded down as csrc/table.cc does, for 1 ≤ value ≤ 65536.
__device__ __forceinline__ uint32_t log2_q16(uint32_t value) {
  const uint32_t whole = 31 - __clz(static_cast<int>(value));
  if (value > 4096) value >>= whole - 11;                // the CPU has a table up to 4096
  uint32_t m = value << __clz(static_cast<int>(value));  // in [1, 2), Q31
  uint32_t fraction = 0;
#pragma unroll 1
  for (int bit = 0; bit < 16; bit++) {
    const uint64_t square = static_cast<uint64_t>(m) * m >> 31;
    const uint32_t two = static_cast<uint32_t>(square >> 32);
    m = static_cast<uint32_t>(square >> two);
    fraction = fraction << 1 | two;
  }
  return whole << 16 | fraction;
}

// Whether a sample of the plane, its counts in the histogram, promises that a table of its own pays.
__device__ __forceinline__ bool may_compress(const uint32_t *histogram) {
  uint32_t total = 0;
#pragma unroll 1
  for (uint32_t s = lane_id(); s < kSymbols; s += kWarp) total += histogram[s];
  total = sum_of(total);
  const uint32_t log_total = log2_q16(total);
  uint64_t bits = 0;
#pragma unroll 1
  for (uint32_t s = lane_id(); s < kSymbols; s += kWarp) {
    const uint32_t c = histogram[s];
    if (c) bits += static_cast<uint64_t>(c) * (log_total - log2_q16(c));
  }
  return (sum_of(bits) >> 16) < total * 8 * 97 / 100;
}

// Of a lane's symbols the one whose frequency should change first when frequencies must grow (or shrink): its
// urgency, and in the low byte itself. The least of all lanes' is the best change.
__device__ __forceinline__ uint64_t best_change(const uint32_t *histogram, const Frequencies &table,
                                                bool grow) {
  constexpr uint64_t kMost = uint64_t{1} << 40;  // above any worth: counts are below 2^17
  const uint32_t first = kLaneSymbols * lane_id();
  uint64_t best = ~uint64_t{0};
#pragma unroll 1
  for (uint32_t s = first; s < first + kLaneSymbols; s++) {
    const uint32_t c = histogram[s], f = table.entries[s];
    if (!c || f == (grow ? kMostFrequent : 1)) continue;
    const uint64_t worth = (static_cast<uint64_t>(c) << 21) / (2 * (grow ? f : f - 1) + 1);
    const uint64_t key = (grow ? kMost - worth : worth) << 8 | s;
    best = key < best ? key : best;
  }
  return best;
}

// Frequencies in proportion to the counts of a whole plane of `units` bytes, not all of them equal.
__device__ __forceinline__ void share_out(const uint32_t *histogram, uint32_t units, Frequencies *table) {
  constexpr uint32_t kTotal = 1u << kLocalBits;
  const uint32_t first = kLaneSymbols * lane_id();
  uint32_t given = 0;
#pragma unroll 1
  for (uint32_t s = first; s < first + kLaneSymbols; s++) {
    const uint32_t c = histogram[s], ideal = (c * kTotal + units / 2) / units;
    const uint32_t f = c ? min(max(ideal, 1u), kMostFrequent) : 0;
    table->entries[s] = f;
    given += f;
  }
  int left = static_cast<int>(kTotal) - static_cast<int>(sum_of(given));
  const bool grow = left > 0;
  uint64_t own = best_change(histogram, *table, grow);
#pragma unroll 1
  while (left != 0) {
    const uint32_t s = static_cast<uint32_t>(least_of(own)) & 0xff;
    __syncwarp();
    const int f = static_cast<int>(table->entries[s]),
              room = grow ? static_cast<int>(kMostFrequent) - f : f - 1;
    const int change = min(min(grow ? left : -left, room), max(1, f / 32));
    __syncwarp();
    if (s / kLaneSymbols == lane_id()) {
      table->entries[s] = static_cast<uint32_t>(grow ? f + change : f - change);
      own = best_change(histogram, *table, grow);
    }
    left += grow ? -change : change;
  }
  __syncwarp();
}

// What plane bytes with these counts take with these frequencies, in bits.
__device__ __forceinline__ uint64_t cost_bits(const uint32_t *histogram, const Frequencies &table) {
  uint64_t cost = 0;
#pragma unroll 1
  for (uint32_t s = lane_id(); s < kSymbols; s += kWarp)
    if (histogram[s])
      cost +=
          static_cast<uint64_t>(histogram[s]) * ((kLocalBits << 16) - log2_q16(table.entries[s] & 0xffff));
  return sum_of(cost) >> 16;
}

// Symbols that occur.
__device__ __forceinline__ uint32_t count_symbols(const uint32_t *histogram) {
  uint32_t count = 0;
#pragma unroll 1
  for (uint32_t s = lane_id(); s < kSymbols; s += kWarp) count += histogram[s] != 0;
  return sum_of(count);
}

// Serialises a local table of `count` symbols (§4.3) to `bytes`, aligned to 4.
__device__ __forceinline__ void store_local_table(const Frequencies &table, uint32_t count, uint8_t *bytes) {
  const uint32_t first = kLaneSymbols * lane_id();
  uint32_t present = 0, total;
#pragma unroll 1
  for (uint32_t s = 0; s < kLaneSymbols; s++) present |= (table.entries[first + s] != 0) << s;
  uint16_t *at = reinterpret_cast<uint16_t *>(bytes + kByteTableHeader) + sum_below(__popc(present), &total);
#pragma unroll 1
  for (uint32_t s = first; s < first + kLaneSymbols; s++)
    if (table.entries[s]) *at++ = static_cast<uint16_t>(table.entries[s]);
  bytes[4 + lane_id()] = static_cast<uint8_t>(present);
  if (lane_id() == 0) *reinterpret_cast<uint32_t *>(bytes) = kLocalBits | count << 16;
}

}  // namespace nz

#endif
