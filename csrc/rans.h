// The arithmetic of the coder (spec §4.1), one lane at a time.
//
// Read me first:
// 1. A state is 32 bits in [2^16, 2^32). Words are 16 bits, so one word always brings a state back into its
// range.
// 2. Frequencies sum to 2^bits. Decoding takes the low `bits` of the state as a slot; encoding puts them
// there.
// 3. The encoder runs from the last symbol to the first, so that the decoder can run forwards.
#ifndef NEUZIP_RANS_H
#define NEUZIP_RANS_H

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace nz {
namespace {  // each instruction set's file gets its own copies, compiled with its flags

inline uint16_t load_u16(const uint8_t *p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline uint32_t load_u32(const uint8_t *p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store_u16(uint8_t *p, uint16_t v) { std::memcpy(p, &v, sizeof v); }
inline void store_u32(uint8_t *p, uint32_t v) { std::memcpy(p, &v, sizeof v); }

// Brings a decoded state back to at least kLow.
inline uint32_t renormalise(uint32_t x, const uint8_t **next) {
  if (x >= kLow) return x;
  x = x << 16 | load_u16(*next);
  *next += 2;
  return x;
}

// Brings a state below frequency << (32 − bits), for a symbol to be encoded.
inline uint32_t shorten(uint32_t x, uint32_t frequency, int bits, uint8_t **next) {
  if (x >> (32 - bits) < frequency) return x;
  *next -= 2;
  store_u16(*next, static_cast<uint16_t>(x));
  return x >> 16;
}

// What the words of a stream are fetched ahead by: some 1,500 symbols.
constexpr uintptr_t kWordsAhead = 512;

// Fetches the lines that belong to the 64 symbols from `from` (kernels.h, DecodeStream): of units of two
// bytes all, of larger ones as many.
inline void fetch_ahead(const DecodeStream &stream, const uint8_t *next, size_t from) {
  const auto line = [](uintptr_t address) { return reinterpret_cast<const void *>(address); };
  const uintptr_t writes = stream.writes + from * stream.write_width;
  __builtin_prefetch(line(reinterpret_cast<uintptr_t>(next) + kWordsAhead));
  __builtin_prefetch(line(stream.reads + from));
  __builtin_prefetch(line(writes), 1);
  __builtin_prefetch(line(writes + 64), 1);
}

// Fetches the lines that belong to step s (kernels.h, EncodeStream).
inline void fetch_next(const EncodeStream &stream, size_t s) {
  const size_t bytes = kLanes * stream.read_width;
  for (size_t at = 0; at < bytes; at += 64)
    __builtin_prefetch(reinterpret_cast<const void *>(stream.reads + s * bytes + at));
}

inline uint8_t get_rank(const RankTable &table, DecodeStream *stream, int lane) {
  const uint32_t x = stream->state[lane];
  const uint32_t slot = x & 0xffff;
  const uint8_t rank = slot < 0xff00 ? table.main[slot >> 8] : table.fine[slot >> 4 & 15];
  stream->state[lane] =
      renormalise(table.frequency[rank] * (x >> 16) + slot - table.start[rank], &stream->next);
  return table.symbol[rank];
}

inline uint8_t get_byte(const ByteTable &table, DecodeStream *stream, int lane) {
  const uint32_t x = stream->state[lane];
  const uint32_t entry = table.slots[x & ((1u << table.bits) - 1)];
  stream->state[lane] =
      renormalise((entry >> 12 & 0xfff) * (x >> table.bits) + (entry & 0xfff), &stream->next);
  return static_cast<uint8_t>(entry >> 24);
}

inline void put_rank(const RankTable &table, EncodeStream *stream, int lane, uint8_t rank) {
  const uint32_t frequency = table.frequency[rank];
  const uint32_t x = shorten(stream->state[lane], frequency, 16, &stream->next);
  stream->state[lane] = (x / frequency << 16) + table.start[rank] + x % frequency;
}

inline void put_byte(const ByteTable &table, EncodeStream *stream, int lane, uint8_t symbol) {
  const ByteCode &code = table.code[symbol];
  const uint32_t frequency = code.frequency_start & 0xffff, start = code.frequency_start >> 16;
  const uint32_t x = shorten(stream->state[lane], frequency, table.bits, &stream->next);
  const auto quotient = static_cast<uint32_t>(uint64_t{x + code.round} * code.reciprocal >> 32 >> code.shift);
  stream->state[lane] = x + start + quotient * ((1u << table.bits) - frequency);
}

}  // namespace
}  // namespace nz

#endif
