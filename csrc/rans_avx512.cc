// The loops for AVX-512 with VBMI and VBMI2 (Ice Lake, Zen 4 and later).
//
// Read me first:
// 1. Rank decoding works on 16-bit halves: with M = 2^16 (spec §4.2) the slot is a state's low half, and
//    f · (x >> 16) is one mullo and one mulhi. All 32 lanes of a stream are two registers.
// 2. A stream is a chain of about 40 cycles a step, most of them spent waiting: four run at once.
// 3. Shuffles, compares and expansions share one port on Intel's cores; a step spends as few as it can.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's headers pass uninitialised registers to their own builtins and then warn of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "planes.h"
#include "rans.h"

namespace nz {
namespace {

inline size_t popcount(uint32_t mask) { return static_cast<unsigned>(__builtin_popcount(mask)); }

// Bytes first, first + step, … as an index vector.
template <int kStep, int kFirst>
inline __m512i byte_indices() {
  alignas(64) uint8_t index[64];
  for (int i = 0; i < 64; i++) index[i] = static_cast<uint8_t>(i * kStep + kFirst);
  return _mm512_load_si512(index);
}

// Index vectors for permutex2var_epi16 over a pair of registers a, b.
struct Halves {
  __m512i low, high;      // the low or high halves of 32-bit elements of a, b
  __m512i first, second;  // a's and b's elements alternating, from a0 b0 and from a16 b16 on

  Halves() {
    alignas(64) uint16_t index[4][32];
    for (int i = 0; i < 32; i++) {
      index[0][i] = static_cast<uint16_t>(2 * i);
      index[1][i] = static_cast<uint16_t>(2 * i + 1);
      index[2][i] = static_cast<uint16_t>((i & 1) * 32 + i / 2);
      index[3][i] = static_cast<uint16_t>((i & 1) * 32 + i / 2 + 16);
    }
    low = _mm512_load_si512(index[0]);
    high = _mm512_load_si512(index[1]);
    first = _mm512_load_si512(index[2]);
    second = _mm512_load_si512(index[3]);
  }
};

// How a rank table is looked up. The loops have no registers for four tables, and need none: shuffles take
// what they pick from straight from memory.
struct RankLookups {
  const RankTable &table;

  static __m512i vector(const void *p) { return _mm512_load_si512(p); }

  // Ranks, as 16-bit elements, of slots given as such.
  __m512i rank_of_slot(__m512i slot) const {
    const __m512i index = _mm512_srli_epi16(slot, 10);
    // The upper byte of every element of index is 0, so it looks up the rank of slot 0: 0, as it should be.
    __m512i rank = _mm512_permutexvar_epi8(index, vector(table.bucket));
    const __mmask64 in_last = _mm512_cmpeq_epi8_mask(index, _mm512_set1_epi8(63));
    rank = _mm512_mask_permutexvar_epi8(rank, in_last, _mm512_srli_epi16(slot, 4), vector(table.last));
    const __mmask32 beyond = _mm512_cmpgt_epu16_mask(slot, _mm512_permutexvar_epi16(rank, vector(table.end)));
    return _mm512_mask_add_epi16(rank, beyond, rank, _mm512_set1_epi16(1));
  }

  __m512i frequency(__m512i rank) const { return _mm512_permutexvar_epi16(rank, vector(table.frequency)); }
  __m512i start(__m512i rank) const { return _mm512_permutexvar_epi16(rank, vector(table.start)); }
  __m512i symbol(__m512i rank) const { return _mm512_permutexvar_epi8(rank, vector(table.symbol)); }
};

// The 32 states of a stream cut into halves.
struct HalfStates {
  __m512i low, high;
  const uint8_t *next;

  void load(const DecodeStream &stream, const Halves &halves) {
    const __m512i a = _mm512_load_si512(stream.state), b = _mm512_load_si512(stream.state + 16);
    low = _mm512_permutex2var_epi16(a, halves.low, b);
    high = _mm512_permutex2var_epi16(a, halves.high, b);
    next = stream.next;
  }

  void store(DecodeStream *stream, const Halves &halves) const {
    _mm512_store_si512(stream->state, _mm512_permutex2var_epi16(low, halves.first, high));
    _mm512_store_si512(stream->state + 16, _mm512_permutex2var_epi16(low, halves.second, high));
    stream->next = next;
  }

  // Decodes one symbol a lane (§4.1) and returns the ranks.
  __m512i step(const RankLookups &table) {
    const __m512i rank = table.rank_of_slot(low);
    const __m512i frequency = table.frequency(rank);
    const __m512i rest = _mm512_sub_epi16(low, table.start(rank));
    const __m512i sum = _mm512_add_epi16(_mm512_mullo_epi16(frequency, high), rest);
    const __mmask32 carry = _mm512_cmplt_epu16_mask(sum, rest);
    const __m512i product = _mm512_mulhi_epu16(frequency, high);
    const __m512i above = _mm512_mask_add_epi16(product, carry, product, _mm512_set1_epi16(1));
    const __mmask32 small = _mm512_testn_epi16_mask(above, above);  // x < 2^16
    high = _mm512_mask_mov_epi16(above, small, sum);
    low = _mm512_mask_expand_epi16(sum, small, _mm512_loadu_si512(next));
    next += 2 * popcount(small);
    return rank;
  }
};

// Two steps at a time, so that one shuffle turns 64 ranks into symbols and one store writes them.
template <int kCount>
void decode_rank_streams(const RankTable *const *tables, DecodeStream *const *streams, size_t steps) {
  const Halves halves;
  const __m512i even = byte_indices<2, 0>(), odd = byte_indices<2, 1>();
  const __m512i even_odd = _mm512_mask_blend_epi8(~uint64_t{0} << 32, even, odd);
  HalfStates states[kCount];
  for (int k = 0; k < kCount; k++) states[k].load(*streams[k], halves);
  size_t at = 0;
  for (; at + 64 <= 32 * steps; at += 64) {
    __m512i ranks[kCount];
#pragma GCC unroll 4
    for (int k = 0; k < kCount; k++) {
      fetch_ahead(*streams[k], states[k].next, at);
      ranks[k] = states[k].step({*tables[k]});
    }
#pragma GCC unroll 4
    for (int k = 0; k < kCount; k++) {
      const RankLookups table{*tables[k]};
      ranks[k] = _mm512_or_si512(ranks[k], _mm512_slli_epi16(states[k].step(table), 8));
      const __m512i ordered = _mm512_permutexvar_epi8(even_odd, ranks[k]);
      _mm512_storeu_si512(streams[k]->symbols + at, table.symbol(ordered));
    }
  }
  for (int k = 0; k < kCount; k++) {
    if (at < 32 * steps) {
      const RankLookups table{*tables[k]};
      const __m512i ordered = _mm512_permutexvar_epi8(even_odd, states[k].step(table));
      const __m256i decoded = _mm512_castsi512_si256(table.symbol(ordered));
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(streams[k]->symbols + at), decoded);
    }
    states[k].store(streams[k], halves);
  }
}

void decode_rank(const RankTable *const *tables, DecodeStream *const *streams, int count, size_t steps) {
  if (count == 4) return decode_rank_streams<4>(tables, streams, steps);
  if (count == 2) return decode_rank_streams<2>(tables, streams, steps);
  decode_rank_streams<1>(tables, streams, steps);
}

// A byte table: one gather a symbol.
struct ByteVectors {
  const uint32_t *slots;
  __m512i bits, slot_mask, field_mask;
  __m512i top;  // picks the top byte of every 32-bit element of two registers, twice over

  explicit ByteVectors(const ByteTable &table)
      : slots(table.slots),
        bits(_mm512_set1_epi32(table.bits)),
        slot_mask(_mm512_set1_epi32((1 << table.bits) - 1)),
        field_mask(_mm512_set1_epi32(0xfff)),
        top(byte_indices<4, 3>()) {}

  __m512i entry(__m512i x) const { return _mm512_i32gather_epi32(_mm512_and_si512(x, slot_mask), slots, 4); }

  // The state before renormalisation. Its product is exact in 32 bits, since f · (x >> bits) ≤ x.
  __m512i state(__m512i x, __m512i e) const {
    const __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(e, 12), field_mask);
    const __m512i product = _mm512_mullo_epi32(frequency, _mm512_srlv_epi32(x, bits));
    return _mm512_add_epi32(product, _mm512_and_si512(e, field_mask));
  }
};

struct WholeStates {
  __m512i x0, x1;  // lanes 0 … 15 and 16 … 31
  const uint8_t *next;

  void load(const DecodeStream &stream) {
    x0 = _mm512_load_si512(stream.state), x1 = _mm512_load_si512(stream.state + 16);
    next = stream.next;
  }

  void store(DecodeStream *stream) const {
    _mm512_store_si512(stream->state, x0), _mm512_store_si512(stream->state + 16, x1);
    stream->next = next;
  }

  // Decodes one symbol a lane (§4.1).
  __m256i step(const ByteVectors &table) {
    const __m512i e0 = table.entry(x0), e1 = table.entry(x1);
    x0 = table.state(x0, e0), x1 = table.state(x1, e1);
    const __m512i low = _mm512_set1_epi32(kLow);
    const __mmask16 small0 = _mm512_cmplt_epu32_mask(x0, low), small1 = _mm512_cmplt_epu32_mask(x1, low);
    const __mmask32 small = _mm512_kunpackw(small1, small0);
    // One expansion for both registers, so that the second need not wait for the first one's word count.
    const __m512i words = _mm512_maskz_expand_epi16(small, _mm512_loadu_si512(next));
    const __m512i w0 = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words));
    const __m512i w1 = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1));
    x0 = _mm512_or_si512(_mm512_mask_slli_epi32(x0, small0, x0, 16), w0);
    x1 = _mm512_or_si512(_mm512_mask_slli_epi32(x1, small1, x1, 16), w1);
    next += 2 * popcount(small);
    return _mm512_castsi512_si256(_mm512_permutex2var_epi8(e0, table.top, e1));
  }
};

template <int kCount>
void decode_byte_streams(const ByteTable *const *tables, DecodeStream *const *streams, size_t steps) {
  const ByteVectors first(*tables[0]), last(*tables[kCount - 1]);
  WholeStates states[kCount];
  for (int k = 0; k < kCount; k++) states[k].load(*streams[k]);
  for (size_t at = 0; at < kLanes * steps; at += kLanes)
#pragma GCC unroll 2
    for (int k = 0; k < kCount; k++) {
      if (at % (2 * kLanes) == 0) fetch_ahead(*streams[k], states[k].next, at);
      const __m256i symbols = states[k].step(k ? last : first);
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(streams[k]->symbols + at), symbols);
    }
  for (int k = 0; k < kCount; k++) states[k].store(streams[k]);
}

// Gathers bind this loop: two streams side by side hide its latency, and four gain nothing.
void decode_byte(const ByteTable *const *tables, DecodeStream *const *streams, int count, size_t steps) {
  for (; count >= 2; count -= 2, streams += 2, tables += 2) decode_byte_streams<2>(tables, streams, steps);
  if (count == 1) decode_byte_streams<1>(tables, streams, steps);
}

// A float slightly below 1 / frequency, for the division x div f of a renormalised state, whose quotient
// Q = x / f is below 2^(32 − bits) ≤ 2^20. Converting x, dividing 1 − 2^−21 by f and multiplying are each off
// by a factor within 1 ± 2^−23 (in any rounding mode; f is exact). As (1 + 2^−23)^3 · (1 − 2^−21) < 1, the
// computed quotient is at most Q; and it is above Q · (1 − 2^−21 − 3 · 2^−23) ≥ Q − 7/8. Truncated, it is
// therefore Q's integer part or one less, and one correction makes it exact.
inline __m512 reciprocals(__m512i frequency) {
  // Ranks beyond the table have frequency 0; nothing looks at their reciprocals.
  const __m512i divisor = _mm512_max_epu32(frequency, _mm512_set1_epi32(1));
  return _mm512_div_ps(_mm512_set1_ps(1.0f - 0x1p-21f), _mm512_cvtepu32_ps(divisor));
}

// What 16 symbols are coded with.
struct Codes {
  __m512i frequency, start;
  __m512 reciprocal;
};

struct EncodeStates {
  __m512i x[2];  // lanes 0 … 15 and 16 … 31
  uint8_t *next;
  __m512i halves;       // index of the low halves of x
  __m512i bits, above;  // table bits; 32 − bits
  __m512i total;        // 2^bits

  EncodeStates(const EncodeStream &stream, int table_bits)
      : next(stream.next),
        halves(Halves().low),
        bits(_mm512_set1_epi32(table_bits)),
        above(_mm512_set1_epi32(32 - table_bits)),
        total(_mm512_set1_epi32(1 << table_bits)) {
    x[0] = _mm512_load_si512(stream.state), x[1] = _mm512_load_si512(stream.state + 16);
  }

  void store(EncodeStream *stream) const {
    _mm512_store_si512(stream->state, x[0]), _mm512_store_si512(stream->state + 16, x[1]);
    stream->next = next;
  }

  // Encodes one symbol a lane (§4.1). Only the words themselves are written: above them lie those of later
  // symbols.
  void step(const Codes &low, const Codes &high) {
    const __mmask16 full0 = _mm512_cmpge_epu32_mask(x[0], _mm512_sllv_epi32(low.frequency, above));
    const __mmask16 full1 = _mm512_cmpge_epu32_mask(x[1], _mm512_sllv_epi32(high.frequency, above));
    const __mmask32 full = _mm512_kunpackw(full1, full0);
    const __m512i words = _mm512_maskz_compress_epi16(full, _mm512_permutex2var_epi16(x[0], halves, x[1]));
    const size_t count = popcount(full);
    next -= 2 * count;
    _mm512_mask_storeu_epi16(next, static_cast<__mmask32>((uint64_t{1} << count) - 1), words);
    x[0] = put(_mm512_mask_srli_epi32(x[0], full0, x[0], 16), low);
    x[1] = put(_mm512_mask_srli_epi32(x[1], full1, x[1], 16), high);
  }

  // (x div f) << bits | start + x mod f
  __m512i put(__m512i state, const Codes &codes) const {
    const __m512i quotient = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_cvtepu32_ps(state), codes.reciprocal));
    const __m512i rest = _mm512_sub_epi32(state, _mm512_mullo_epi32(quotient, codes.frequency));
    const __mmask16 short_by_one = _mm512_cmpge_epu32_mask(rest, codes.frequency);
    const __m512i joined =
        _mm512_add_epi32(_mm512_sllv_epi32(quotient, bits), _mm512_add_epi32(rest, codes.start));
    return _mm512_mask_add_epi32(joined, short_by_one, joined, _mm512_sub_epi32(total, codes.frequency));
  }
};

// 16 bytes as 32-bit elements.
inline __m512i load_bytes(const uint8_t *p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

inline __m512i load_words(const uint16_t *p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}

// What a rank is coded with. Ranks beyond the table have no frequency, and are never looked up.
struct RankCodes {
  __m512i frequency, start;
  __m512 reciprocal;

  explicit RankCodes(const RankTable &table)
      : frequency(load_words(table.frequency)),
        start(load_words(table.start)),
        reciprocal(reciprocals(frequency)) {}

  Codes operator()(const uint8_t *ranks) const {
    const __m512i rank = load_bytes(ranks);
    return {_mm512_permutexvar_epi32(rank, frequency), _mm512_permutexvar_epi32(rank, start),
            _mm512_permutexvar_ps(rank, reciprocal)};
  }
};

// Dividing costs less than gathering reciprocals, and nothing waits for it.
struct ByteCodes {
  const ByteTable &table;

  explicit ByteCodes(const ByteTable &from) : table(from) {}

  Codes operator()(const uint8_t *symbols) const {
    const __m512i pairs =
        _mm512_slli_epi32(load_bytes(symbols), 1);  // codes have twice a gather's largest scale
    const __m512i both = _mm512_i32gather_epi32(pairs, &table.code[0].frequency_start, 8);
    const __m512i frequency = _mm512_and_si512(both, _mm512_set1_epi32(0xffff));
    return {frequency, _mm512_srli_epi32(both, 16), reciprocals(frequency)};
  }
};

inline int bits_of(const RankTable &) { return 16; }
inline int bits_of(const ByteTable &table) { return table.bits; }

// A stream waits for itself some 30 cycles a step; two share them.
template <typename StreamCodes, typename Table>
void encode_streams(const Table *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  const StreamCodes codes0(*tables[0]), codes1(*tables[count - 1]);
  EncodeStates states0(*streams[0], bits_of(*tables[0]));
  EncodeStates states1(*streams[count - 1], bits_of(*tables[count - 1]));
  const uint8_t *const symbols0 = streams[0]->symbols, *const symbols1 = streams[count - 1]->symbols;
  for (size_t at = kLanes * steps; count == 1 && at > 0; at -= kLanes)
    states0.step(codes0(symbols0 + at - 32), codes0(symbols0 + at - 16));
  for (size_t at = kLanes * steps; count == 2 && at > 0; at -= kLanes) {
    states0.step(codes0(symbols0 + at - 32), codes0(symbols0 + at - 16));
    states1.step(codes1(symbols1 + at - 32), codes1(symbols1 + at - 16));
  }
  states0.store(streams[0]);
  if (count == 2) states1.store(streams[1]);
}

void encode_rank(const RankTable *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  encode_streams<RankCodes>(tables, streams, count, steps);
}

void encode_byte(const ByteTable *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  encode_streams<ByteCodes>(tables, streams, count, steps);
}

bool to_ranks(const RankTable &table, const uint8_t *symbols, uint8_t *ranks, size_t n) {
  __m512i lut[4];
  for (int i = 0; i < 4; i++) lut[i] = _mm512_loadu_si512(table.rank_of + 64 * i);
  __mmask64 missing = 0;
  for (size_t at = 0; at < n; at += 64) {
    const __mmask64 valid = ~uint64_t{0} >> (n - at < 64 ? 64 - (n - at) : 0);
    const __m512i symbol = _mm512_maskz_loadu_epi8(valid, symbols + at);
    const __m512i below_128 = _mm512_permutex2var_epi8(lut[0], symbol, lut[1]);
    const __m512i from_128 = _mm512_permutex2var_epi8(lut[2], symbol, lut[3]);
    const __m512i rank = _mm512_mask_blend_epi8(_mm512_movepi8_mask(symbol), below_128, from_128);
    missing |= valid & _mm512_movepi8_mask(rank);  // of all ranks only kMissing has the top bit
    _mm512_mask_storeu_epi8(ranks + at, valid, rank);
  }
  return missing != 0;
}

// A symbol's low nibble looks up eight bits, its high nibble one of them (table.h).
size_t find_missing(const ByteTable &table, const uint8_t *symbols, size_t n) {
  const auto all = [](const uint8_t *bytes) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes)));
  };
  const __m512i below_128 = all(table.missing[0]), from_128 = all(table.missing[1]);
  const __m512i bit = _mm512_set1_epi64(static_cast<long long>(0x8040201008040201));
  const __m512i low4 = _mm512_set1_epi8(15);
  size_t at = 0;
  for (; at + 64 <= n; at += 64) {
    const __m512i symbol = _mm512_loadu_si512(symbols + at), low = _mm512_and_si512(symbol, low4);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(symbol, 4), low4);
    const __m512i row = _mm512_mask_blend_epi8(
        _mm512_movepi8_mask(symbol), _mm512_shuffle_epi8(below_128, low), _mm512_shuffle_epi8(from_128, low));
    if (_mm512_test_epi8_mask(row, _mm512_shuffle_epi8(bit, high))) break;
  }
  return at + kScalarKernels.find_missing(table, symbols + at, n - at);
}

}  // namespace

constexpr Kernels kAvx512Kernels =
    with_planes({"avx512", 4, 2, decode_rank, decode_byte, encode_rank, encode_byte, to_ranks, find_missing});

}  // namespace nz
