// Frequency tables: from a histogram, to and from their bytes (spec §4.2, §4.3), and in the forms the loops
// look symbols up in.
#ifndef NEUZIP_TABLE_H
#define NEUZIP_TABLE_H

#include <cstddef>
#include <cstdint>

namespace nz {

constexpr int kMaxRanks = 16;
constexpr uint8_t kMissing = 0xff;  // rank of a symbol that has none
constexpr int kMaxByteBits = 14;
constexpr size_t kRankTableBytes = 36;
constexpr size_t kByteTableHeader = 36;
constexpr size_t kMaxByteTableBytes = kByteTableHeader + 2 * 256;

using Histogram = uint32_t[256];

// Spec §4.2. Slots are 16 bits. A slot below 65280 belongs to main[slot >> 8], any other to fine[slot >> 4 &
// 15].
struct RankTable {
  int ranks;
  int main_ranks;
  uint8_t main[256];  // entry 255 is the first fine rank
  uint8_t fine[16];
  uint8_t rank_of[256];  // kMissing where a symbol has no rank
  // By rank; each fills the 64 bytes that a vector may be loaded from.
  alignas(64) uint8_t symbol[4 * kMaxRanks];
  alignas(64) uint16_t frequency[2 * kMaxRanks];  // 0 beyond `ranks`
  alignas(64) uint16_t start[2 * kMaxRanks];      // 65535 beyond `ranks`
  alignas(64) uint16_t end[2 * kMaxRanks];        // last slot; 65535 beyond `ranks`
  alignas(
      64) uint8_t bucket[64];  // rank of slot 1024 · b; at most one more begins inside a bucket but the last
  alignas(64) uint8_t last[64];  // rank of slot 64512 + 16 · i, in the last bucket
};

// What encoding a symbol takes, sixteen bytes for one lookup. With x < frequency << (32 − bits):
// x div frequency = (x + round) · reciprocal >> 32 >> shift.
struct alignas(16) ByteCode {
  uint32_t reciprocal;
  uint32_t frequency_start;  // frequency | start << 16
  uint32_t shift;
  uint32_t round;  // 0 or 1
};

// Spec §4.3. slots[slot] = symbol << 24 | frequency << 12 | slot − start: one lookup a symbol.
struct ByteTable {
  int bits;
  uint16_t frequency[256];  // 0 where a symbol has none
  // Those without one, for vectors to look up: symbol 16 · h + l is bit h % 8 of missing[h / 8][l].
  uint8_t missing[2][16];
  ByteCode code[256];  // zeros where it has none
  uint32_t slots[1 << kMaxByteBits];
};

// Fill the lookup forms from serialised tables. False if the bytes break a rule of the spec.
bool read_rank_table(const uint8_t *bytes, RankTable *table);
// `size` bytes are readable; *used is the serialised length on success.
bool check_byte_table(const uint8_t *bytes, size_t size, size_t *used);
bool read_byte_table(const uint8_t *bytes, size_t size, ByteTable *table, size_t *used);

// Choose frequencies for a histogram and serialise them. Symbols may be left out: they will be patched.
// Each returns the serialised length, 0 if fewer than two symbols occur; *cost is the estimated size of the
// histogram's symbols in bits, patches included.
size_t plan_rank_table(const Histogram &histogram, uint8_t *bytes, uint64_t *cost);
size_t plan_byte_table(const Histogram &histogram, int bits, uint8_t *bytes, uint64_t *cost);

// log2(value) · 2^16, rounded down, for value ≥ 1; of values above 4096 only the highest twelve bits count.
// Integers, so that every machine makes the same tables.
class Log2 {
 public:
  uint32_t operator()(uint32_t value) const {
    uint32_t shift = 0;
    while (value > 4096) value >>= 1, shift++;
    return table_[value] + (shift << 16);
  }

 private:
  static const uint32_t *table();
  const uint32_t *const table_ = table();
};

}  // namespace nz

#endif
