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

// A rank table in registers. Ranks are 16-bit elements below 16.
struct RankVectors {
  __m512i bucket;  // byte b: rank of slot 1024 · b; at most one more rank begins inside a bucket (§4.2)
  __m512i last;    // byte b: rank of slots 16 · b … of the last bucket, where more may begin
  __m512i end;     // last slot of each rank
  __m512i start;   // first slot of each rank
  __m512i frequency;
  __m512i symbol;  // bytes, once in every 128 bits

  explicit RankVectors(const RankTable &table) {
    alignas(64) uint8_t of_bucket[64], of_last[64];
    alignas(64) uint16_t ends[32];
    for (int b = 0; b < 64; b++) of_bucket[b] = table.main[4 * b];
    for (int b = 0; b < 48; b += 16) std::memset(of_last + b, table.main[252 + b / 16], 16);
    std::memcpy(of_last + 48, table.fine, 16);
    for (int rank = 0; rank < 32; rank++)
      ends[rank] = rank + 1 < table.ranks ? static_cast<uint16_t>(table.start[rank + 1] - 1) : 0xffff;
    bucket = _mm512_load_si512(of_bucket);
    last = _mm512_load_si512(of_last);
    end = _mm512_load_si512(ends);
    start = broadcast_32(table.start);
    frequency = broadcast_32(table.frequency);
    symbol = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table.symbol)));
  }

  static __m512i broadcast_32(const void *p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i *>(p)));
  }

  __m512i rank_of_slot(__m512i slot) const {
    const __m512i index = _mm512_srli_epi16(slot, 10);
    // The upper byte of every element of index is 0, so it looks up the rank of slot 0: 0, as it should be.
    __m512i rank = _mm512_permutexvar_epi8(index, bucket);
    const __mmask64 in_last = _mm512_cmpeq_epi8_mask(index, _mm512_set1_epi8(63));
    rank = _mm512_mask_permutexvar_epi8(rank, in_last, _mm512_srli_epi16(slot, 4), last);
    const __mmask32 beyond = _mm512_cmpgt_epu16_mask(slot, _mm512_permutexvar_epi16(rank, end));
    return _mm512_mask_add_epi16(rank, beyond, rank, _mm512_set1_epi16(1));
  }
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
  __m512i step(const RankVectors &table) {
    const __m512i rank = table.rank_of_slot(low);
    const __m512i frequency = _mm512_permutexvar_epi16(rank, table.frequency);
    const __m512i rest = _mm512_sub_epi16(low, _mm512_permutexvar_epi16(rank, table.start));
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
void decode_rank_streams(const RankTable &table, DecodeStream *streams, uint8_t *const *symbols,
                         size_t steps) {
  const RankVectors vectors(table);
  const Halves halves;
  const __m512i even = byte_indices<2, 0>(), odd = byte_indices<2, 1>();
  const __m512i even_odd = _mm512_mask_blend_epi8(~uint64_t{0} << 32, even, odd);
  HalfStates states[kCount];
  for (int k = 0; k < kCount; k++) states[k].load(streams[k], halves);
  size_t at = 0;
  for (; at + 64 <= 32 * steps; at += 64) {
    __m512i ranks[kCount];
#pragma GCC unroll 4
    for (int k = 0; k < kCount; k++) ranks[k] = states[k].step(vectors);
#pragma GCC unroll 4
    for (int k = 0; k < kCount; k++) {
      ranks[k] = _mm512_or_si512(ranks[k], _mm512_slli_epi16(states[k].step(vectors), 8));
      const __m512i ordered = _mm512_permutexvar_epi8(even_odd, ranks[k]);
      _mm512_storeu_si512(symbols[k] + at, _mm512_shuffle_epi8(vectors.symbol, ordered));
    }
  }
  for (int k = 0; k < kCount; k++) {
    if (at < 32 * steps) {
      const __m512i ordered = _mm512_permutexvar_epi8(even_odd, states[k].step(vectors));
      const __m256i decoded = _mm512_castsi512_si256(_mm512_shuffle_epi8(vectors.symbol, ordered));
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(symbols[k] + at), decoded);
    }
    states[k].store(&streams[k], halves);
  }
}

void decode_rank(const RankTable &table, DecodeStream *streams, uint8_t *const *symbols, int count,
                 size_t steps) {
  if (count == 4) return decode_rank_streams<4>(table, streams, symbols, steps);
  if (count == 2) return decode_rank_streams<2>(table, streams, symbols, steps);
  decode_rank_streams<1>(table, streams, symbols, steps);
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
void decode_byte_streams(const ByteTable &table, DecodeStream *streams, uint8_t *const *symbols,
                         size_t steps) {
  const ByteVectors vectors(table);
  WholeStates states[kCount];
  for (int k = 0; k < kCount; k++) states[k].load(streams[k]);
  for (size_t s = 0; s < steps; s++)
#pragma GCC unroll 2
    for (int k = 0; k < kCount; k++)
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(symbols[k] + kLanes * s), states[k].step(vectors));
  for (int k = 0; k < kCount; k++) states[k].store(&streams[k]);
}

// Gathers bind this loop: two streams side by side hide its latency, and four gain nothing.
void decode_byte(const ByteTable &table, DecodeStream *streams, uint8_t *const *symbols, int count,
                 size_t steps) {
  for (; count >= 2; count -= 2, streams += 2, symbols += 2)
    decode_byte_streams<2>(table, streams, symbols, steps);
  if (count == 1) decode_byte_streams<1>(table, streams, symbols, steps);
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

void encode_rank(const RankTable &table, EncodeStream *stream, const uint8_t *ranks, size_t steps) {
  const __m512i frequency = load_words(table.frequency), start = load_words(table.start);
  const __m512 reciprocal = reciprocals(frequency);
  const auto codes = [&](const uint8_t *p) {
    const __m512i rank = load_bytes(p);
    return Codes{_mm512_permutexvar_epi32(rank, frequency), _mm512_permutexvar_epi32(rank, start),
                 _mm512_permutexvar_ps(rank, reciprocal)};
  };
  EncodeStates states(*stream, 16);
  for (size_t at = kLanes * steps; at > 0; at -= kLanes)
    states.step(codes(ranks + at - 32), codes(ranks + at - 16));
  states.store(stream);
}

void encode_byte(const ByteTable &table, EncodeStream *stream, const uint8_t *symbols, size_t steps) {
  // Dividing costs less than gathering reciprocals, and nothing waits for it.
  const auto codes = [&](const uint8_t *p) {
    const __m512i both = _mm512_i32gather_epi32(load_bytes(p), table.frequency_start, 4);
    const __m512i frequency = _mm512_and_si512(both, _mm512_set1_epi32(0xffff));
    return Codes{frequency, _mm512_srli_epi32(both, 16), reciprocals(frequency)};
  };
  EncodeStates states(*stream, table.bits);
  for (size_t at = kLanes * steps; at > 0; at -= kLanes)
    states.step(codes(symbols + at - 32), codes(symbols + at - 16));
  states.store(stream);
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

}  // namespace

constexpr Kernels kAvx512Kernels = with_planes(
    {"avx512", 4, decode_rank, decode_byte, encode_rank, encode_byte, to_ranks, {}, {}, {}, {}, {}});

}  // namespace nz
