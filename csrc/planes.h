// Units to planes and back (spec §3, §4.6), written as plain loops over bytes that compilers turn into
// vectors. Included by each instruction set's file and compiled with its flags; the results are the same
// everywhere.
#ifndef NEUZIP_PLANES_H
#define NEUZIP_PLANES_H

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"

// XXH_INLINE_ALL gives each instruction set its own copy, with its own vectors.
#define XXH_INLINE_ALL
#include "third_party/xxhash.h"

namespace nz {
namespace {

// Units where they lie: unaligned, and aliasing bytes.
typedef uint16_t __attribute__((aligned(1), may_alias)) Unit16;
typedef uint32_t __attribute__((aligned(1), may_alias)) Unit32;
typedef uint64_t __attribute__((aligned(1), may_alias)) Unit64;

// The loops keep to 8- and 16-bit expressions, which vectorise to the most lanes.
template <bool kRotate>
inline uint16_t join_head(uint8_t plane0, uint8_t plane1) {
  const uint16_t high = plane0, low = plane1;
  if (!kRotate) return static_cast<uint16_t>(high << 8 | low);
  return static_cast<uint16_t>(static_cast<uint16_t>(high << 7) | static_cast<uint16_t>(low >> 1) |
                               static_cast<uint16_t>(low << 15));
}

template <bool kRotate>
inline void cut_head(uint16_t head, uint8_t *plane0, uint8_t *plane1) {
  *plane0 = static_cast<uint8_t>(kRotate ? head >> 7 : head >> 8);
  *plane1 = kRotate
                ? static_cast<uint8_t>(static_cast<uint16_t>(head << 1) | static_cast<uint16_t>(head >> 15))
                : static_cast<uint8_t>(head);
}

inline uint16_t join(uint8_t high, uint8_t low) { return static_cast<uint16_t>(high << 8 | low); }

void split1(const uint8_t *units, uint8_t *const *planes, size_t n) { std::memcpy(planes[0], units, n); }

void merge1(const uint8_t *const *planes, uint8_t *units, size_t n) { std::memcpy(units, planes[0], n); }

template <bool kRotate>
void split2(const uint8_t *units, uint8_t *const *planes, size_t n) {
  const Unit16 *__restrict unit = reinterpret_cast<const Unit16 *>(units);
  uint8_t *__restrict p0 = planes[0], *__restrict p1 = planes[1];
  for (size_t i = 0; i < n; i++) cut_head<kRotate>(unit[i], &p0[i], &p1[i]);
}

template <bool kRotate>
void merge2(const uint8_t *const *planes, uint8_t *units, size_t n) {
  const uint8_t *__restrict p0 = planes[0], *__restrict p1 = planes[1];
  Unit16 *__restrict unit = reinterpret_cast<Unit16 *>(units);
  for (size_t i = 0; i < n; i++) unit[i] = join_head<kRotate>(p0[i], p1[i]);
}

template <bool kRotate>
void split4(const uint8_t *units, uint8_t *const *planes, size_t n) {
  const Unit32 *__restrict unit = reinterpret_cast<const Unit32 *>(units);
  uint8_t *__restrict p0 = planes[0], *__restrict p1 = planes[1];
  uint8_t *__restrict p2 = planes[2], *__restrict p3 = planes[3];
  for (size_t i = 0; i < n; i++) {
    const uint32_t x = unit[i];
    cut_head<kRotate>(static_cast<uint16_t>(x >> 16), &p0[i], &p1[i]);
    p2[i] = static_cast<uint8_t>(static_cast<uint16_t>(x) >> 8);
    p3[i] = static_cast<uint8_t>(x);
  }
}

template <bool kRotate>
void merge4(const uint8_t *const *planes, uint8_t *units, size_t n) {
  const uint8_t *__restrict p0 = planes[0], *__restrict p1 = planes[1];
  const uint8_t *__restrict p2 = planes[2], *__restrict p3 = planes[3];
  Unit32 *__restrict unit = reinterpret_cast<Unit32 *>(units);
  for (size_t i = 0; i < n; i++)
    unit[i] = static_cast<uint32_t>(join_head<kRotate>(p0[i], p1[i])) << 16 | join(p2[i], p3[i]);
}

template <bool kRotate>
void split8(const uint8_t *units, uint8_t *const *planes, size_t n) {
  const Unit64 *unit = reinterpret_cast<const Unit64 *>(units);
  for (size_t i = 0; i < n; i++) {
    const uint64_t x = unit[i];
    cut_head<kRotate>(static_cast<uint16_t>(x >> 48), &planes[0][i], &planes[1][i]);
    for (int p = 2; p < 8; p++) planes[p][i] = static_cast<uint8_t>(x >> 8 * (7 - p));
  }
}

template <bool kRotate>
void merge8(const uint8_t *const *planes, uint8_t *units, size_t n) {
  Unit64 *unit = reinterpret_cast<Unit64 *>(units);
  for (size_t i = 0; i < n; i++) {
    uint64_t x = join_head<kRotate>(planes[0][i], planes[1][i]);
    for (int p = 2; p < 8; p++) x = x << 8 | planes[p][i];
    unit[i] = x;
  }
}

constexpr size_t kSixUnits = 128;  // units and bytes of a block of mode six
constexpr size_t kSixBytes = 96;

inline void merge_joint(const uint8_t *__restrict symbols, const uint8_t *__restrict six, uint8_t base,
                        uint8_t *__restrict plane0, uint8_t *__restrict plane1, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    uint8_t low[kSixUnits];
    for (size_t j = 0; j < 32; j++) low[j] = six[j] & 63;
    for (size_t j = 0; j < 32; j++) low[32 + j] = six[32 + j] & 63;
    for (size_t j = 0; j < 32; j++) low[64 + j] = six[64 + j] & 63;
    for (size_t j = 0; j < 32; j++)
      low[96 + j] = static_cast<uint8_t>(six[j] >> 6 | (six[32 + j] >> 6) << 2 | (six[64 + j] >> 6) << 4);
    for (size_t i = 0; i < kSixUnits; i++) {
      plane0[i] = static_cast<uint8_t>((symbols[i] >> 2) + base);
      plane1[i] = static_cast<uint8_t>(symbols[i] << 6 | low[i]);
    }
    symbols += kSixUnits, plane0 += kSixUnits, plane1 += kSixUnits, six += kSixBytes;
  }
}

inline bool split_joint(const uint8_t *__restrict plane0, const uint8_t *__restrict plane1, uint8_t base,
                        uint8_t fill, uint8_t *__restrict symbols, uint8_t *__restrict six, size_t blocks) {
  uint8_t missing = 0;
  for (size_t b = 0; b < blocks; b++) {
    for (size_t i = 0; i < kSixUnits; i++) {
      const uint8_t above = static_cast<uint8_t>(plane0[i] - base);  // wraps to at least 64 below the base
      const uint8_t symbol = static_cast<uint8_t>(above << 2 | plane1[i] >> 6);
      missing |= above & 0xc0;
      symbols[i] = above < 64 ? symbol : fill;
    }
    for (size_t j = 0; j < 32; j++) {
      const uint8_t last = plane1[96 + j];
      six[j] = static_cast<uint8_t>((plane1[j] & 63) | last << 6);
      six[32 + j] = static_cast<uint8_t>((plane1[32 + j] & 63) | (last >> 2 & 3) << 6);
      six[64 + j] = static_cast<uint8_t>((plane1[64 + j] & 63) | (last >> 4 & 3) << 6);
    }
    symbols += kSixUnits, plane0 += kSixUnits, plane1 += kSixUnits, six += kSixBytes;
  }
  return missing != 0;
}

inline uint64_t checksum64(const void *data, size_t size) { return XXH3_64bits(data, size); }

// Fills in the members of Kernels that this file provides.
inline constexpr Kernels with_planes(Kernels k) {
  k.split[0][0] = k.split[1][0] = split1;
  k.merge[0][0] = k.merge[1][0] = merge1;
  k.split[0][1] = split2<false>, k.split[1][1] = split2<true>;
  k.merge[0][1] = merge2<false>, k.merge[1][1] = merge2<true>;
  k.split[0][2] = split4<false>, k.split[1][2] = split4<true>;
  k.merge[0][2] = merge4<false>, k.merge[1][2] = merge4<true>;
  k.split[0][3] = split8<false>, k.split[1][3] = split8<true>;
  k.merge[0][3] = merge8<false>, k.merge[1][3] = merge8<true>;
  k.merge_joint = merge_joint;
  k.split_joint = split_joint;
  k.checksum64 = checksum64;
  return k;
}

}  // namespace
}  // namespace nz

#endif
