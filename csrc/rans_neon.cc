// The loops for aarch64 (NEON). Ranks are looked up with byte shuffles, 16 lanes at a time; byte tables,
// which are too large for shuffles, are left to the scalar loops.
#include <arm_neon.h>

#include "planes.h"
#include "rans.h"
#include "word_shuffles.h"

namespace nz {
namespace {

// The sets of lanes whose masks (all ones or zero) are set: byte g is the set of lanes 8g … 8g + 7.
inline uint32_t lane_sets(uint16x8_t m0, uint16x8_t m1, uint16x8_t m2, uint16x8_t m3) {
  const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  const uint8x16_t a = vandq_u8(bit, vuzp1q_u8(vreinterpretq_u8_u16(m0), vreinterpretq_u8_u16(m1)));
  const uint8x16_t b = vandq_u8(bit, vuzp1q_u8(vreinterpretq_u8_u16(m2), vreinterpretq_u8_u16(m3)));
  uint8x16_t sum = vpaddq_u8(a, b);
  sum = vpaddq_u8(sum, sum);
  return vgetq_lane_u32(vreinterpretq_u32_u8(vpaddq_u8(sum, sum)), 0);
}

// Sixteen 16-bit numbers, one a rank, looked up by byte.
struct Numbers {
  uint8x16_t low, high;

  explicit Numbers(const uint16_t *p) {
    const uint8x16x2_t bytes = vld2q_u8(reinterpret_cast<const uint8_t *>(p));
    low = bytes.val[0], high = bytes.val[1];
  }

  // Of 16 ranks: the first eight, and the others.
  uint16x8x2_t of(uint8x16_t rank) const {
    const uint8x16_t l = vqtbl1q_u8(low, rank), h = vqtbl1q_u8(high, rank);
    return {vreinterpretq_u16_u8(vzip1q_u8(l, h)), vreinterpretq_u16_u8(vzip2q_u8(l, h))};
  }
};

// A rank table in registers.
struct RankVectors {
  uint8x16x4_t bucket;  // byte b: 4 · (rank of slot 1024 · b) + number of its quarters with the next rank
  uint8x16_t top;       // byte b: rank of slots with upper byte 255 − b
  uint8x16_t fine;
  uint8x16_t symbol;
  Numbers frequency, start;

  explicit RankVectors(const RankTable &table)
      : fine(vld1q_u8(table.fine)),
        symbol(vld1q_u8(table.symbol)),
        frequency(table.frequency),
        start(table.start) {
    for (int i = 0; i < 4; i++) {
      // Four arrays of 16: the rank at the start of each bucket's quarters.
      const uint8x16x4_t quarter = vld4q_u8(table.main + 64 * i);
      // At most one rank begins inside a bucket other than the last (§4.2), so the quarters' distances from
      // the first are 0 or 1, and their sum is the number of quarters with the next rank.
      const uint8x16_t next = vsubq_u8(vaddq_u8(vaddq_u8(quarter.val[1], quarter.val[2]), quarter.val[3]),
                                       vaddq_u8(vaddq_u8(quarter.val[0], quarter.val[0]), quarter.val[0]));
      bucket.val[i] = vaddq_u8(vshlq_n_u8(quarter.val[0], 2), next);
    }
    const uint8x16_t last = vrev64q_u8(vld1q_u8(table.main + 240));
    top = vextq_u8(last, last, 8);
  }

  // The ranks of 16 slots, given their upper and lower bytes.
  uint8x16_t rank_of_slot(uint8x16_t high, uint8x16_t low) const {
    // Adding the slot's quarter carries into the rank where the next rank has begun.
    const uint8x16_t quarter = vandq_u8(high, vdupq_n_u8(3));
    uint8x16_t rank = vshrq_n_u8(vaddq_u8(vqtbl4q_u8(bucket, vshrq_n_u8(high, 2)), quarter), 2);
    // The last bucket may hold several; so look its slots, and some before, up by their whole upper byte.
    rank = vqtbx1q_u8(rank, top, vmvnq_u8(high));
    return vbslq_u8(vceqq_u8(high, vdupq_n_u8(255)), vqtbl1q_u8(fine, vshrq_n_u8(low, 4)), rank);
  }
};

// The 32 states of a stream cut into halves, eight lanes a register.
struct HalfStates {
  uint16x8_t low[4], high[4];
  const uint8_t *next;

  void load(const DecodeStream &stream) {
    for (int g = 0; g < 4; g++) {
      const uint16x8x2_t x = vld2q_u16(reinterpret_cast<const uint16_t *>(stream.state + 8 * g));
      low[g] = x.val[0], high[g] = x.val[1];
    }
    next = stream.next;
  }

  void store(DecodeStream *stream) const {
    for (int g = 0; g < 4; g++)
      vst2q_u16(reinterpret_cast<uint16_t *>(stream->state + 8 * g), {low[g], high[g]});
    stream->next = next;
  }

  // f · (x >> 16) + slot − c in lanes 8g … 8g + 7.
  void advance(int g, uint16x8_t frequency, uint16x8_t start) {
    const uint16x8_t rest = vsubq_u16(low[g], start);
    const uint32x4_t a = vmull_u16(vget_low_u16(frequency), vget_low_u16(high[g]));
    const uint32x4_t b = vmull_high_u16(frequency, high[g]);
    const uint16x8_t x0 = vreinterpretq_u16_u32(vaddw_u16(a, vget_low_u16(rest)));
    const uint16x8_t x1 = vreinterpretq_u16_u32(vaddw_high_u16(b, rest));
    low[g] = vuzp1q_u16(x0, x1), high[g] = vuzp2q_u16(x0, x1);
  }

  void renormalise() {
    uint16x8_t small[4];
    for (int g = 0; g < 4; g++) small[g] = vceqzq_u16(high[g]);
    uint32_t sets = lane_sets(small[0], small[1], small[2], small[3]);
    for (int g = 0; g < 4; g++, sets >>= 8) {
      const uint8x16_t words = vqtbl1q_u8(vld1q_u8(next), vld1q_u8(kWordShuffles.take[sets & 255]));
      next += kWordShuffles.bytes[sets & 255];
      high[g] = vbslq_u16(small[g], low[g], high[g]);
      low[g] = vbslq_u16(small[g], vreinterpretq_u16_u8(words), low[g]);
    }
  }

  // Decodes one symbol a lane (§4.1).
  void step(const RankVectors &table, uint8_t *symbols) {
    for (int g = 0; g < 4; g += 2) {
      const uint8x16_t a = vreinterpretq_u8_u16(low[g]), b = vreinterpretq_u8_u16(low[g + 1]);
      const uint8x16_t rank = table.rank_of_slot(vuzp2q_u8(a, b), vuzp1q_u8(a, b));
      vst1q_u8(symbols + 8 * g, vqtbl1q_u8(table.symbol, rank));
      const uint16x8x2_t frequency = table.frequency.of(rank), start = table.start.of(rank);
      advance(g, frequency.val[0], start.val[0]);
      advance(g + 1, frequency.val[1], start.val[1]);
    }
    renormalise();
  }
};

template <int kCount>
void decode_rank_streams(const RankTable &table, DecodeStream *const *streams, size_t steps) {
  const RankVectors vectors(table);
  HalfStates states[kCount];
  for (int k = 0; k < kCount; k++) states[k].load(*streams[k]);
  for (size_t s = 0; s < steps; s++)
    for (int k = 0; k < kCount; k++) {
      if (s % 2 == 0) fetch_ahead(*streams[k], states[k].next, kLanes * s);
      states[k].step(vectors, streams[k]->symbols + kLanes * s);
    }
  for (int k = 0; k < kCount; k++) states[k].store(streams[k]);
}

// Two streams' states take half of the 32 registers; a second table, or more streams, would not fit beside
// them.
void decode_rank(const RankTable *const *tables, DecodeStream *const *streams, int count, size_t steps) {
  for (; count >= 2 && tables[0] == tables[1]; count -= 2, streams += 2, tables += 2)
    decode_rank_streams<2>(*tables[0], streams, steps);
  for (; count > 0; count--, streams++, tables++) decode_rank_streams<1>(*tables[0], streams, steps);
}

void decode_byte(const ByteTable *const *tables, DecodeStream *const *streams, int count, size_t steps) {
  kScalarKernels.decode_byte(tables, streams, count, steps);
}

// A rank table for encoding: 32-bit entries, one a rank.
struct CodeVectors {
  uint8x16x4_t frequency_start;  // frequency | start << 16
  uint8x16x4_t reciprocal;       // floats

  explicit CodeVectors(const RankTable &table) {
    for (int i = 0; i < 4; i++) {
      const uint32x4_t frequency = vmovl_u16(vld1_u16(table.frequency + 4 * i));
      const uint32x4_t start = vmovl_u16(vld1_u16(table.start + 4 * i));
      frequency_start.val[i] = vreinterpretq_u8_u32(vsliq_n_u32(frequency, start, 16));
      reciprocal.val[i] = vreinterpretq_u8_f32(reciprocals(frequency));
    }
  }

  // A float slightly below 1 / frequency, for the division x div f of a renormalised state, whose quotient
  // Q = x / f is below 2^16. Converting x, dividing 1 − 2^−21 by f and multiplying are each off by a factor
  // within 1 ± 2^−23 (in any rounding mode; f is exact). As (1 + 2^−23)^3 · (1 − 2^−21) < 1, the computed
  // quotient is at most Q; and it is above Q · (1 − 2^−21 − 3 · 2^−23) > Q − 2^−4. Truncated, it is therefore
  // Q's integer part or one less, and one correction makes it exact.
  static float32x4_t reciprocals(uint32x4_t frequency) {
    // Ranks beyond the table have frequency 0; nothing looks at their reciprocals.
    const uint32x4_t divisor = vmaxq_u32(frequency, vdupq_n_u32(1));
    return vdivq_f32(vdupq_n_f32(1.0f - 0x1p-21f), vcvtq_f32_u32(divisor));
  }
};

// What four symbols are coded with.
struct Codes {
  uint32x4_t frequency, start;
  float32x4_t reciprocal;

  // Ranks 4i … 4i + 3 of 16; i is a constant once inlined.
  Codes(const CodeVectors &table, uint8x16_t ranks, int i) {
    const uint8x16_t four = vshlq_n_u8(vqtbl1q_u8(ranks, vld1q_u8(kFourTimes[i])), 2);
    const uint8x16_t index = vorrq_u8(four, vreinterpretq_u8_u32(vdupq_n_u32(0x03020100)));
    const uint32x4_t both = vreinterpretq_u32_u8(vqtbl4q_u8(table.frequency_start, index));
    frequency = vandq_u32(both, vdupq_n_u32(0xffff));
    start = vshrq_n_u32(both, 16);
    reciprocal = vreinterpretq_f32_u8(vqtbl4q_u8(table.reciprocal, index));
  }

  alignas(16) static constexpr uint8_t kFourTimes[4][16] = {
      {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3},
      {4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7},
      {8, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11},
      {12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15}};

  // (x div f) << 16 | start + x mod f
  uint32x4_t put(uint32x4_t x) const {
    const uint32x4_t quotient = vcvtq_u32_f32(vmulq_f32(vcvtq_f32_u32(x), reciprocal));
    const uint32x4_t rest = vmlsq_u32(x, quotient, frequency);
    const uint32x4_t short_by_one = vcgeq_u32(rest, frequency);
    const uint32x4_t exact = vsubq_u32(quotient, short_by_one);
    const uint32x4_t remainder = vsubq_u32(rest, vandq_u32(short_by_one, frequency));
    return vaddq_u32(vshlq_n_u32(exact, 16), vaddq_u32(remainder, start));
  }
};

struct EncodeStates {
  uint32x4_t x[8];
  uint8_t *next;

  explicit EncodeStates(const EncodeStream &stream) : next(stream.next) {
    for (int i = 0; i < 8; i++) x[i] = vld1q_u32(stream.state + 4 * i);
  }

  void store(EncodeStream *stream) const {
    for (int i = 0; i < 8; i++) vst1q_u32(stream->state + 4 * i, x[i]);
    stream->next = next;
  }

  // Encodes one symbol a lane (§4.1).
  void step(const CodeVectors &table, const uint8_t *ranks) {
    uint16x8_t full[4], words[4];
    const uint8x16_t rank[2] = {vld1q_u8(ranks), vld1q_u8(ranks + 16)};
    for (int g = 0; g < 4; g++) {
      const Codes a(table, rank[g / 2], g % 2 * 2), b(table, rank[g / 2], g % 2 * 2 + 1);
      const uint32x4_t full_a = vcgeq_u32(vshrq_n_u32(x[2 * g], 16), a.frequency);
      const uint32x4_t full_b = vcgeq_u32(vshrq_n_u32(x[2 * g + 1], 16), b.frequency);
      full[g] = vuzp1q_u16(vreinterpretq_u16_u32(full_a), vreinterpretq_u16_u32(full_b));
      words[g] = vuzp1q_u16(vreinterpretq_u16_u32(x[2 * g]), vreinterpretq_u16_u32(x[2 * g + 1]));
      x[2 * g] = a.put(drop_word(x[2 * g], full_a));
      x[2 * g + 1] = b.put(drop_word(x[2 * g + 1], full_b));
    }
    place(words, lane_sets(full[0], full[1], full[2], full[3]));
  }

  // x >> 16 where full is −1: a shift by −16, which is full << 4.
  static uint32x4_t drop_word(uint32x4_t x, uint32x4_t full) {
    return vshlq_u32(x, vreinterpretq_s32_u32(vshlq_n_u32(full, 4)));
  }

  // Whole vectors end at `next`; what they write below the words is overwritten later, or is scratch
  // (kernels.h).
  void place(const uint16x8_t *words, uint32_t sets) {
    for (int g = 3; g >= 0; g--) {
      const uint32_t set = sets >> 8 * g & 255;
      const uint8x16_t packed =
          vqtbl1q_u8(vreinterpretq_u8_u16(words[g]), vld1q_u8(kWordShuffles.place[set]));
      vst1q_u8(next - 16, packed);
      next -= kWordShuffles.bytes[set];
    }
  }
};

void encode_rank(const RankTable *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  for (int k = 0; k < count; k++) {
    const CodeVectors vectors(*tables[k]);
    EncodeStates states(*streams[k]);
    for (size_t at = kLanes * steps; at > 0; at -= kLanes)
      states.step(vectors, streams[k]->symbols + at - kLanes);
    states.store(streams[k]);
  }
}

void encode_byte(const ByteTable *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  kScalarKernels.encode_byte(tables, streams, count, steps);
}

bool to_ranks(const RankTable &table, const uint8_t *symbols, uint8_t *ranks, size_t n) {
  uint8x16x4_t lut[4];
  for (int i = 0; i < 4; i++) lut[i] = vld1q_u8_x4(table.rank_of + 64 * i);
  uint8x16_t missing = vdupq_n_u8(0);
  size_t at = 0;
  for (; at + 16 <= n; at += 16) {
    const uint8x16_t symbol = vld1q_u8(symbols + at);
    uint8x16_t rank = vqtbl4q_u8(lut[0], symbol);
    for (int i = 1; i < 4; i++)
      rank = vqtbx4q_u8(rank, lut[i], vsubq_u8(symbol, vdupq_n_u8(static_cast<uint8_t>(64 * i))));
    missing = vmaxq_u8(missing, rank);
    vst1q_u8(ranks + at, rank);
  }
  const bool missing_before = vmaxvq_u8(missing) == kMissing;
  return kScalarKernels.to_ranks(table, symbols + at, ranks + at, n - at) || missing_before;
}

// A symbol's low nibble looks up eight bits, its high nibble one of them (table.h).
size_t find_missing(const ByteTable &table, const uint8_t *symbols, size_t n) {
  const uint8x16_t below_128 = vld1q_u8(table.missing[0]), from_128 = vld1q_u8(table.missing[1]);
  const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  size_t at = 0;
  for (; at + 16 <= n; at += 16) {
    const uint8x16_t symbol = vld1q_u8(symbols + at), low = vandq_u8(symbol, vdupq_n_u8(15));
    const uint8x16_t row =
        vbslq_u8(vcgeq_u8(symbol, vdupq_n_u8(128)), vqtbl1q_u8(from_128, low), vqtbl1q_u8(below_128, low));
    if (vmaxvq_u8(vandq_u8(row, vqtbl1q_u8(bit, vshrq_n_u8(symbol, 4))))) break;
  }
  return at + kScalarKernels.find_missing(table, symbols + at, n - at);
}

}  // namespace

constexpr Kernels kNeonKernels =
    with_planes({"neon", 2, 1, decode_rank, decode_byte, encode_rank, encode_byte, to_ranks, find_missing});

}  // namespace nz
