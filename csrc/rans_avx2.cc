// The loops for AVX2.
//
// Ranks are looked up without gathers: a slot's high byte is compared with the boundaries of the main ranks
// (all are multiples of 256, §4.2), which counts the rank; what a rank needs is then sixteen bytes in a
// register, one shuffle away. States are kept as separate high and low halves, sixteen lanes a register, and
// all arithmetic is 16 bits. Low halves are kept with their top bit flipped: AVX2 compares signed numbers
// only, and flipped ones compare as the unsigned ones do.
#include <immintrin.h>

#include <algorithm>

#include "planes.h"
#include "rans.h"
#include "word_shuffles.h"

namespace nz {
namespace {

inline __m256i load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline void store(void *p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }
inline __m256i both(const void *p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i *>(p)));
}

// 16-bit values of 16 ranks as two byte shuffles: low bytes and high bytes.
struct SplitBytes {
  __m256i low, high;
  explicit SplitBytes(const uint16_t *values) {
    alignas(16) uint8_t l[16], h[16];
    for (int i = 0; i < 16; i++)
      l[i] = static_cast<uint8_t>(values[i]), h[i] = static_cast<uint8_t>(values[i] >> 8);
    low = both(l), high = both(h);
  }
};

// Eight words, at the lanes of a mask, given as its offset in the table of shuffles.
inline __m128i spread_words(const uint8_t *words, size_t offset) {
  const auto *shuffle =
      reinterpret_cast<const __m128i *>(reinterpret_cast<const uint8_t *>(kWordShuffles.take) + offset);
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(words)), _mm_load_si128(shuffle));
}

// The same, and moves `next` past those taken.
inline __m128i take_words(const uint8_t **next, uint64_t mask) {
  const __m128i words = spread_words(*next, mask * sizeof *kWordShuffles.take);
  *next += 2 * static_cast<size_t>(_mm_popcnt_u64(mask));
  return words;
}

// Places the low halves of the lanes of `mask` below `next`; overwrites 16 bytes there.
inline void place_words(uint8_t **next, __m128i words, uint64_t mask) {
  _mm_storeu_si128(
      reinterpret_cast<__m128i *>(*next - 16),
      _mm_shuffle_epi8(words, _mm_load_si128(reinterpret_cast<const __m128i *>(kWordShuffles.place[mask]))));
  *next -= 2 * static_cast<size_t>(_mm_popcnt_u64(mask));
}

// Eight entries of a table. Loads one by one: gathers are slower on AMD's processors, and on Intel's since
// their microcode guards them.
inline __m256i look_up(const uint32_t *table, __m256i index) {
  const auto a = static_cast<uint64_t>(_mm256_extract_epi64(index, 0));
  const auto b = static_cast<uint64_t>(_mm256_extract_epi64(index, 1));
  const auto c = static_cast<uint64_t>(_mm256_extract_epi64(index, 2));
  const auto d = static_cast<uint64_t>(_mm256_extract_epi64(index, 3));
  const auto entry = [table](uint64_t i) { return static_cast<int>(table[i & 0xffffffff]); };
  return _mm256_setr_epi32(entry(a), entry(a >> 32), entry(b), entry(b >> 32), entry(c), entry(c >> 32),
                           entry(d), entry(d >> 32));
}

// --- rank decoder

// A rank table in registers. kBoundaries is a compile-time bound of the number of main ranks.
template <int kBoundaries>
struct RankRegisters {
  SplitBytes frequency, start;
  __m256i symbol, fine;
  __m256i boundary[kBoundaries];  // last high byte of each main rank, its top bit flipped

  explicit RankRegisters(const RankTable &table)
      : frequency(table.frequency), start(table.start), symbol(both(table.symbol)), fine(both(table.fine)) {
    for (int i = 0; i < kBoundaries; i++) {
      const int last = i < table.main_ranks ? (table.start[i + 1] >> 8) - 1 : 0xff;
      boundary[i] = _mm256_set1_epi8(static_cast<char>(last ^ 0x80));
    }
  }

  // Ranks of 32 slots given as bytes, the high ones flipped. Slots from 65280 have high byte 255 and are
  // fine.
  __m256i rank(__m256i high, __m256i low) const {
    __m256i even = _mm256_setzero_si256(), odd = even;
#pragma GCC unroll 16
    for (int i = 0; i < kBoundaries; i++) {
      const __m256i above = _mm256_cmpgt_epi8(high, boundary[i]);
      if (i & 1)
        odd = _mm256_sub_epi8(odd, above);
      else
        even = _mm256_sub_epi8(even, above);
    }
    const __m256i nibble = _mm256_and_si256(_mm256_srli_epi16(low, 4), _mm256_set1_epi8(15));
    const __m256i is_fine = _mm256_cmpeq_epi8(high, _mm256_set1_epi8(0x7f));
    return _mm256_blendv_epi8(_mm256_add_epi8(even, odd), _mm256_shuffle_epi8(fine, nibble), is_fine);
  }
};

// A state's halves: lanes 0–15 and 16–31.
struct Halves {
  __m256i low[2], high[2];

  explicit Halves(const uint32_t *state) {
    const __m256i mask = _mm256_set1_epi32(0xffff);
    for (int j = 0; j < 2; j++) {
      const __m256i a = load(state + 16 * j), b = load(state + 16 * j + 8);
      low[j] = _mm256_permute4x64_epi64(
          _mm256_packus_epi32(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)), 0xd8);
      high[j] = _mm256_permute4x64_epi64(
          _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)), 0xd8);
    }
  }
  void write(uint32_t *state) const {
    for (int j = 0; j < 2; j++) {
      const __m256i a = _mm256_unpacklo_epi16(low[j], high[j]), b = _mm256_unpackhi_epi16(low[j], high[j]);
      store(state + 16 * j, _mm256_permute2x128_si256(a, b, 0x20));
      store(state + 16 * j + 8, _mm256_permute2x128_si256(a, b, 0x31));
    }
  }
};

inline __m256i top_bit() { return _mm256_set1_epi16(static_cast<short>(0x8000)); }
inline __m256i flip(__m256i low) { return _mm256_xor_si256(low, top_bit()); }

// The states of a stream being decoded, low halves flipped.
struct FlippedHalves : Halves {
  explicit FlippedHalves(const uint32_t *state) : Halves(state) { flip_both(); }
  void write(uint32_t *state) {
    flip_both();
    Halves::write(state);
  }
  void flip_both() {
    for (__m256i &half : low) half = flip(half);
  }

  // x = f · (x >> 16) + slot − start, in lanes 16 j … 16 j + 15; −1 where that is short of a word.
  __m256i advance(int j, __m256i f, __m256i start) {
    const __m256i within = _mm256_sub_epi16(low[j], start);
    low[j] = _mm256_add_epi16(_mm256_mullo_epi16(f, high[j]), within);
    const __m256i carry = _mm256_cmpgt_epi16(within, low[j]);  // −1 where the sum wrapped
    high[j] = _mm256_sub_epi16(_mm256_mulhi_epu16(f, high[j]), carry);
    return _mm256_cmpeq_epi16(high[j], _mm256_setzero_si256());
  }

  // x = x << 16 | word where x is short; words are 0 elsewhere.
  void renormalise(int j, __m256i is_short, __m256i words) {
    const __m256i kept = _mm256_blendv_epi8(low[j], top_bit(), is_short);
    high[j] = _mm256_or_si256(high[j], _mm256_xor_si256(kept, low[j]));
    low[j] = _mm256_xor_si256(kept, words);
  }
};

// One step of one stream.
template <int kBoundaries>
inline void rank_step(const RankRegisters<kBoundaries> &table, FlippedHalves *x, const uint8_t **next,
                      uint8_t *symbols) {
  const __m256i byte = _mm256_set1_epi16(0xff);
  const __m256i l0 = x->low[0], l1 = x->low[1];
  // Packing interleaves the two registers' 128-bit halves; unpacking below undoes it.
  const __m256i rank =
      table.rank(_mm256_packus_epi16(_mm256_srli_epi16(l0, 8), _mm256_srli_epi16(l1, 8)),
                 _mm256_packus_epi16(_mm256_and_si256(l0, byte), _mm256_and_si256(l1, byte)));
  const __m256i fl = _mm256_shuffle_epi8(table.frequency.low, rank);
  const __m256i fh = _mm256_shuffle_epi8(table.frequency.high, rank);
  const __m256i sl = _mm256_shuffle_epi8(table.start.low, rank);
  const __m256i sh = _mm256_shuffle_epi8(table.start.high, rank);
  store(symbols, _mm256_permute4x64_epi64(_mm256_shuffle_epi8(table.symbol, rank), 0xd8));
  const __m256i short0 = x->advance(0, _mm256_unpacklo_epi8(fl, fh), _mm256_unpacklo_epi8(sl, sh));
  const __m256i short1 = x->advance(1, _mm256_unpackhi_epi8(fl, fh), _mm256_unpackhi_epi8(sl, sh));
  // The mask's bytes stand for lanes 0–7, 16–23, 8–15, 24–31. A shuffle has 16 bytes, and what is left of a
  // mask's bits when they are its offset counts the same words.
  const auto mask = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_packs_epi16(short0, short1)));
  const size_t of0 = mask << 4 & 0xff0, of1 = mask >> 12 & 0xff0, of2 = mask >> 4 & 0xff0,
               of3 = mask >> 20 & 0xff0;
  const auto taken = [](size_t offset) { return 2 * static_cast<size_t>(_mm_popcnt_u64(offset)); };
  const uint8_t *const next0 = *next, *const next1 = next0 + taken(of0), *const next2 = next1 + taken(of1),
                       *const next3 = next2 + taken(of2);
  *next = next0 + taken(mask);
  x->renormalise(0, short0, _mm256_set_m128i(spread_words(next1, of1), spread_words(next0, of0)));
  x->renormalise(1, short1, _mm256_set_m128i(spread_words(next3, of3), spread_words(next2, of2)));
}

template <int kStreams, int kBoundaries>
void decode_rank_streams(const RankTable *const *tables, DecodeStream *const *streams, size_t steps) {
  const RankRegisters<kBoundaries> table0(*tables[0]), table1(*tables[kStreams - 1]);
  FlippedHalves x0(streams[0]->state), x1(streams[kStreams - 1]->state);
  const uint8_t *next0 = streams[0]->next, *next1 = streams[kStreams - 1]->next;
  for (size_t at = 0; at < kLanes * steps; at += kLanes) {
    if (at % (2 * kLanes) == 0) fetch_ahead(*streams[0], next0, at);
    rank_step(table0, &x0, &next0, streams[0]->symbols + at);
    if (kStreams == 1) continue;
    if (at % (2 * kLanes) == 0) fetch_ahead(*streams[1], next1, at);
    rank_step(table1, &x1, &next1, streams[1]->symbols + at);
  }
  x0.write(streams[0]->state);
  streams[0]->next = next0;
  if (kStreams == 1) return;
  x1.write(streams[1]->state);
  streams[1]->next = next1;
}

template <int kStreams>
void decode_rank_bounded(const RankTable *const *tables, DecodeStream *const *streams, size_t steps) {
  const int main_ranks = std::max(tables[0]->main_ranks, tables[kStreams - 1]->main_ranks);
  if (main_ranks <= 8)
    decode_rank_streams<kStreams, 8>(tables, streams, steps);
  else if (main_ranks <= 10)
    decode_rank_streams<kStreams, 10>(tables, streams, steps);
  else
    decode_rank_streams<kStreams, 15>(tables, streams, steps);
}

void decode_rank(const RankTable *const *tables, DecodeStream *const *streams, int count, size_t steps) {
  int k = 0;
  for (; k + 2 <= count; k += 2) decode_rank_bounded<2>(tables + k, streams + k, steps);
  if (k < count) decode_rank_bounded<1>(tables + k, streams + k, steps);
}

// --- byte decoder

// A stream's 32 states as four registers of eight.
struct States {
  __m256i x[4];
  explicit States(const uint32_t *state) {
    for (int j = 0; j < 4; j++) x[j] = load(state + 8 * j);
  }
  void write(uint32_t *state) const {
    for (int j = 0; j < 4; j++) store(state + 8 * j, x[j]);
  }
};

inline void byte_step(const ByteTable &table, States *states, const uint8_t **next, uint8_t *symbols) {
  const __m256i slot_mask = _mm256_set1_epi32((1 << table.bits) - 1);
  const __m128i bits = _mm_cvtsi32_si128(table.bits);
  const __m256i twelve = _mm256_set1_epi32(0xfff), zero = _mm256_setzero_si256();
  __m256i entry[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) entry[j] = look_up(table.slots, _mm256_and_si256(states->x[j], slot_mask));
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m256i frequency = _mm256_and_si256(_mm256_srli_epi32(entry[j], 12), twelve);
    const __m256i x = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srl_epi32(states->x[j], bits)),
                                       _mm256_and_si256(entry[j], twelve));
    const __m256i needs = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), zero);
    const uint32_t mask = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(needs)));
    const __m256i words = _mm256_cvtepu16_epi32(take_words(next, mask));
    states->x[j] = _mm256_or_si256(_mm256_blendv_epi8(x, _mm256_slli_epi32(x, 16), needs), words);
    entry[j] = _mm256_srli_epi32(entry[j], 24);
  }
  const __m256i bytes =
      _mm256_packus_epi16(_mm256_packus_epi32(entry[0], entry[1]), _mm256_packus_epi32(entry[2], entry[3]));
  store(symbols, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

template <int kStreams>
void decode_byte_streams(const ByteTable *const *tables, DecodeStream *const *streams, size_t steps) {
  States x0(streams[0]->state), x1(streams[kStreams - 1]->state);
  const uint8_t *next0 = streams[0]->next, *next1 = streams[kStreams - 1]->next;
  for (size_t at = 0; at < kLanes * steps; at += kLanes) {
    if (at % (2 * kLanes) == 0) fetch_ahead(*streams[0], next0, at);
    byte_step(*tables[0], &x0, &next0, streams[0]->symbols + at);
    if (kStreams == 1) continue;
    if (at % (2 * kLanes) == 0) fetch_ahead(*streams[1], next1, at);
    byte_step(*tables[1], &x1, &next1, streams[1]->symbols + at);
  }
  x0.write(streams[0]->state);
  streams[0]->next = next0;
  if (kStreams == 1) return;
  x1.write(streams[1]->state);
  streams[1]->next = next1;
}

void decode_byte(const ByteTable *const *tables, DecodeStream *const *streams, int count, size_t steps) {
  int k = 0;
  for (; k + 2 <= count; k += 2) decode_byte_streams<2>(tables + k, streams + k, steps);
  if (k < count) decode_byte_streams<1>(tables + k, streams + k, steps);
}

// --- encoders

// Quotients come from floats. Dividend and quotient carry a relative error below 2^-22, the factor lowers
// them by 2^-21, so that the truncated quotient, below 2^20, is exact or one too small (2^20 · (2^-21 +
// 2^-22) < 1), which the remainder tells.
constexpr float kLowered = 1.0f - 0x1p-21f;

// Emits the low halves of the states that are too large for their frequency, and shortens those.
inline __m256i renormalise_down(__m256i x, __m256i keeps, uint8_t **next) {
  const uint32_t mask = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(keeps))) ^ 0xff;
  const __m256i low = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
  place_words(next, _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)), mask);
  return _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, keeps);
}

// Sixteen lanes as halves: x = (x div f) << 16 | start + x mod f, with x < f << 16. Frequencies are multiples
// of 16 (§4.2): without the low four bits of both there are 28 bits to divide, by a number that lets the
// remainder of a quotient one too small still fit 16.
inline void put_ranks(__m256i *low, __m256i *high, __m256i f, __m256i start) {
  const __m256i f16 = _mm256_srli_epi16(f, 4), zero = _mm256_setzero_si256();
  const auto quotient = [](__m256i x, __m256i divisor) {
    const __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(x, 4)), _mm256_set1_ps(kLowered));
    return _mm256_cvttps_epi32(_mm256_div_ps(y, _mm256_cvtepi32_ps(divisor)));
  };
  // Unpacking and packing both work within 128 bits, so the lanes come back in order.
  const __m256i q =
      _mm256_packus_epi32(quotient(_mm256_unpacklo_epi16(*low, *high), _mm256_unpacklo_epi16(f16, zero)),
                          quotient(_mm256_unpackhi_epi16(*low, *high), _mm256_unpackhi_epi16(f16, zero)));
  const __m256i y = _mm256_or_si256(_mm256_srli_epi16(*low, 4), _mm256_slli_epi16(*high, 12));
  const __m256i remainder = _mm256_sub_epi16(y, _mm256_mullo_epi16(q, f16));
  const __m256i exact = _mm256_cmpgt_epi16(f16, remainder);  // −1 where q is
  *high = _mm256_add_epi16(_mm256_add_epi16(q, _mm256_set1_epi16(1)), exact);
  *low = _mm256_add_epi16(_mm256_sub_epi16(*low, _mm256_mullo_epi16(*high, f)), start);
}

// A stream whose ranks are being encoded.
struct RankEncoder {
  SplitBytes frequency, start;
  Halves x;
  EncodeStream *stream;
  uint8_t *next;

  RankEncoder(const RankTable &table, EncodeStream *from)
      : frequency(table.frequency), start(table.start), x(from->state), stream(from), next(from->next) {}

  void step(size_t s) {
    fetch_next(*stream, s);
    // Lanes 0–7, 16–23 | 8–15, 24–31, so that unpacking bytes to words yields 0–15 and 16–31.
    const __m256i rank = _mm256_permute4x64_epi64(load(stream->symbols + kLanes * s), 0xd8);
    const __m256i fl = _mm256_shuffle_epi8(frequency.low, rank);
    const __m256i fh = _mm256_shuffle_epi8(frequency.high, rank);
    const __m256i sl = _mm256_shuffle_epi8(start.low, rank), sh = _mm256_shuffle_epi8(start.high, rank);
    put(1, _mm256_unpackhi_epi8(fl, fh), _mm256_unpackhi_epi8(sl, sh));
    put(0, _mm256_unpacklo_epi8(fl, fh), _mm256_unpacklo_epi8(sl, sh));
  }

  // Sixteen lanes. A state of at least f << 16 is too large: its low half becomes a word.
  void put(int j, __m256i f, __m256i c) {
    const __m256i emits = _mm256_cmpeq_epi16(_mm256_max_epu16(x.high[j], f), x.high[j]);
    const auto mask =
        static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_packs_epi16(emits, _mm256_setzero_si256())));
    place_words(&next, _mm256_extracti128_si256(x.low[j], 1), mask >> 16);
    place_words(&next, _mm256_castsi256_si128(x.low[j]), mask & 0xff);
    x.low[j] = _mm256_blendv_epi8(x.low[j], x.high[j], emits);
    x.high[j] = _mm256_andnot_si256(emits, x.high[j]);
    put_ranks(&x.low[j], &x.high[j], f, c);
  }

  void close() {
    x.write(stream->state);
    stream->next = next;
  }
};

// One stream keeps the processor busy.
void encode_rank(const RankTable *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  for (int k = 0; k < count; k++) {
    RankEncoder encoder(*tables[k], streams[k]);
    for (size_t s = steps; s-- > 0;) encoder.step(s);
    encoder.close();
  }
}

// The codes of eight symbols, member by member.
struct ByteCodes {
  __m256i reciprocal, frequency_start, shift, round;

  ByteCodes(const ByteCode *codes, const uint8_t *symbols) {
    const auto code = [&](int i) { return reinterpret_cast<const __m128i *>(codes + symbols[i]); };
    const auto row = [&](int i) { return _mm256_loadu2_m128i(code(i + 4), code(i)); };
    const __m256i a = row(0), b = row(1), c = row(2), d = row(3);
    const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    const __m256i ab2 = _mm256_unpackhi_epi32(a, b), cd2 = _mm256_unpackhi_epi32(c, d);
    reciprocal = _mm256_unpacklo_epi64(ab, cd), frequency_start = _mm256_unpackhi_epi64(ab, cd);
    shift = _mm256_unpacklo_epi64(ab2, cd2), round = _mm256_unpackhi_epi64(ab2, cd2);
  }
};

// The high halves of the products of eight unsigned numbers.
inline __m256i multiply_high(__m256i a, __m256i b) {
  const __m256i even = _mm256_mul_epu32(a, b);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
  return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}

// A stream whose plane bytes are being encoded.
struct ByteEncoder {
  const ByteCode *codes;
  __m256i slots;
  __m128i rest;  // 32 − bits
  States states;
  EncodeStream *stream;
  const uint8_t *symbols;
  uint8_t *next;

  ByteEncoder(const ByteTable &table, EncodeStream *from)
      : codes(table.code),
        slots(_mm256_set1_epi32(1 << table.bits)),
        rest(_mm_cvtsi32_si128(32 - table.bits)),
        states(from->state),
        stream(from),
        symbols(from->symbols),
        next(from->next) {}

  void step(size_t s) {
    fetch_next(*stream, s);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const int g = 3 - j;  // the last lanes first
      states.x[g] = put(states.x[g], ByteCodes(codes, symbols + kLanes * s + 8 * g));
    }
  }

  // Eight lanes: x = (x div f) << bits | start + x mod f, with x < f << (32 − bits).
  __m256i put(__m256i x, const ByteCodes &code) {
    const __m256i f = _mm256_and_si256(code.frequency_start, _mm256_set1_epi32(0xffff));
    const __m256i start = _mm256_srli_epi32(code.frequency_start, 16);
    x = renormalise_down(x, _mm256_cmpgt_epi32(f, _mm256_srl_epi32(x, rest)), &next);
    const __m256i product = multiply_high(_mm256_add_epi32(x, code.round), code.reciprocal);
    const __m256i more =
        _mm256_mullo_epi32(_mm256_srlv_epi32(product, code.shift), _mm256_sub_epi32(slots, f));
    return _mm256_add_epi32(_mm256_add_epi32(x, start), more);
  }

  void close() {
    states.write(stream->state);
    stream->next = next;
  }
};

// One stream's four registers keep the processor busy.
void encode_byte(const ByteTable *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  for (int k = 0; k < count; k++) {
    ByteEncoder encoder(*tables[k], streams[k]);
    for (size_t s = steps; s-- > 0;) encoder.step(s);
    encoder.close();
  }
}

// --- ranks

// The exponents of a tensor lie close together: those within 32 of the largest ranked one are looked up with
// two shuffles, zero (whose exponent is far from all others) with a compare, and any other table byte by
// byte.
bool to_ranks(const RankTable &table, const uint8_t *symbols, uint8_t *ranks, size_t n) {
  int top = 0;
  for (int r = 0; r < table.ranks; r++) top = table.symbol[r] > top ? table.symbol[r] : top;
  for (int r = 0; r < table.ranks; r++)
    if (table.symbol[r] != 0 && top - table.symbol[r] >= 32)
      return kScalarKernels.to_ranks(table, symbols, ranks, n);
  alignas(16) uint8_t window[2][16];  // window[below >> 4][below & 15], below = top − symbol
  for (int i = 0; i < 32; i++) window[i / 16][i % 16] = i <= top ? table.rank_of[top - i] : kMissing;
  const __m256i near = both(window[0]), far = both(window[1]), low4 = _mm256_set1_epi8(15);
  const __m256i of_zero = _mm256_set1_epi8(static_cast<char>(table.rank_of[0]));
  const __m256i tops = _mm256_set1_epi8(static_cast<char>(top)), none = _mm256_set1_epi8(-1);
  __m256i missing = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i symbol = load(symbols + i);
    const __m256i below = _mm256_sub_epi8(tops, symbol), nibble = _mm256_and_si256(below, low4);
    const __m256i is_near = _mm256_cmpeq_epi8(_mm256_min_epu8(below, low4), below);
    const __m256i is_far = _mm256_cmpeq_epi8(_mm256_min_epu8(below, _mm256_set1_epi8(31)), below);
    __m256i rank = _mm256_blendv_epi8(none, _mm256_shuffle_epi8(far, nibble), is_far);
    rank = _mm256_blendv_epi8(rank, _mm256_shuffle_epi8(near, nibble), is_near);
    rank = _mm256_blendv_epi8(rank, of_zero, _mm256_cmpeq_epi8(symbol, _mm256_setzero_si256()));
    missing = _mm256_or_si256(missing, rank);  // ranks are below 16: a top bit means kMissing
    store(ranks + i, rank);
  }
  const bool tail = kScalarKernels.to_ranks(table, symbols + i, ranks + i, n - i);
  return tail || _mm256_movemask_epi8(missing) != 0;
}

// A symbol's low nibble looks up eight bits, its high nibble one of them (table.h).
size_t find_missing(const ByteTable &table, const uint8_t *symbols, size_t n) {
  const __m256i below_128 = both(table.missing[0]), from_128 = both(table.missing[1]);
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i low4 = _mm256_set1_epi8(15);
  size_t at = 0;
  for (; at + 32 <= n; at += 32) {
    const __m256i symbol = load(symbols + at), low = _mm256_and_si256(symbol, low4);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(symbol, 4), low4);
    const __m256i row =
        _mm256_blendv_epi8(_mm256_shuffle_epi8(below_128, low), _mm256_shuffle_epi8(from_128, low), symbol);
    if (!_mm256_testz_si256(row, _mm256_shuffle_epi8(bit, high))) break;
  }
  return at + kScalarKernels.find_missing(table, symbols + at, n - at);
}

}  // namespace

constexpr Kernels kAvx2Kernels =
    with_planes({"avx2", 2, 1, decode_rank, decode_byte, encode_rank, encode_byte, to_ranks, find_missing});

}  // namespace nz
