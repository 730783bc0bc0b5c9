// Stands before the compiler's <immintrin.h> on the include path, so that csrc/rans_avx512.cc, unchanged,
// becomes portable code: SIMDe has most of its intrinsics, and those that version 0.7.4 lacks are spelled out
// here, one element at a time, as Intel's intrinsics guide defines them.
#ifndef NEUZIP_TESTS_SIMDE_IMMINTRIN_H
#define NEUZIP_TESTS_SIMDE_IMMINTRIN_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

using __mmask16 = simde__mmask16;
using __mmask32 = simde__mmask32;
using __mmask64 = simde__mmask64;

namespace nz_simde {

using Vector = simde__m512i;

// Elements of type T of a vector of 64 bytes, or of half or a quarter of one.
template <typename T, int kBytes = 64>
struct Elements {
  static constexpr int kCount = kBytes / static_cast<int>(sizeof(T));
  T at[kCount];

  Elements() : at() {}
  template <typename V>
  explicit Elements(const V &v) {
    static_assert(sizeof(V) == kBytes);
    std::memcpy(at, &v, sizeof at);
  }
  Vector vector() const {
    static_assert(kBytes == 64);
    Vector v;
    std::memcpy(&v, at, sizeof at);
    return v;
  }
};

template <typename T, typename Mask, typename Test>
Mask compare(Vector a, Vector b, Test test) {
  const Elements<T> x(a), y(b);
  Mask mask = 0;
  for (int i = 0; i < x.kCount; i++) mask = static_cast<Mask>(mask | Mask{test(x.at[i], y.at[i])} << i);
  return mask;
}

// Zero extension of 16 elements.
template <typename T, typename V>
Vector widen(const V &v) {
  const Elements<T, sizeof(V)> narrow(v);
  Elements<uint32_t> r;
  for (int i = 0; i < 16; i++) r.at[i] = narrow.at[i];
  return r.vector();
}

template <typename T, typename Mask>
void store(void *p, Mask mask, Vector a) {
  const Elements<T> x(a);
  for (int i = 0; i < x.kCount; i++)
    if (mask >> i & 1) std::memcpy(static_cast<T *>(p) + i, &x.at[i], sizeof(T));
}

inline simde__mmask32 cmpgt_epu16(Vector a, Vector b) {
  return compare<uint16_t, simde__mmask32>(a, b, [](uint16_t x, uint16_t y) { return x > y; });
}

inline simde__mmask32 cmplt_epu16(Vector a, Vector b) { return cmpgt_epu16(b, a); }

inline simde__mmask32 testn_epi16(Vector a, Vector b) {
  return compare<uint16_t, simde__mmask32>(a, b, [](uint16_t x, uint16_t y) { return (x & y) == 0; });
}

inline simde__mmask16 cmplt_epu32(Vector a, Vector b) {
  return compare<uint32_t, simde__mmask16>(a, b, [](uint32_t x, uint32_t y) { return x < y; });
}

inline Vector mulhi_epu16(Vector a, Vector b) {
  const Elements<uint16_t> x(a), y(b);
  Elements<uint16_t> r;
  for (int i = 0; i < 32; i++) r.at[i] = static_cast<uint16_t>(uint32_t{x.at[i]} * y.at[i] >> 16);
  return r.vector();
}

inline Vector mask_expand_epi16(Vector source, simde__mmask32 mask, Vector a) {
  const Elements<uint16_t> x(a);
  Elements<uint16_t> r(source);
  for (int i = 0, j = 0; i < 32; i++)
    if (mask >> i & 1) r.at[i] = x.at[j++];
  return r.vector();
}

inline Vector maskz_compress_epi16(simde__mmask32 mask, Vector a) {
  const Elements<uint16_t> x(a);
  Elements<uint16_t> r;
  for (int i = 0, j = 0; i < 32; i++)
    if (mask >> i & 1) r.at[j++] = x.at[i];
  return r.vector();
}

inline Vector mask_shift_epi32(Vector source, simde__mmask16 mask, Vector a, int left, int right) {
  const Elements<uint32_t> x(a);
  Elements<uint32_t> r(source);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) r.at[i] = x.at[i] << left >> right;
  return r.vector();
}

inline Vector i32gather_epi32(Vector index, const void *base, int scale) {
  const Elements<int32_t> at(index);
  Elements<uint32_t> r;
  for (int i = 0; i < 16; i++)
    std::memcpy(&r.at[i], static_cast<const uint8_t *>(base) + int64_t{at.at[i]} * scale, sizeof r.at[i]);
  return r.vector();
}

inline simde__m512 cvtepu32_ps(Vector a) {
  const Elements<uint32_t> x(a);
  float r[16];
  for (int i = 0; i < 16; i++) r[i] = static_cast<float>(x.at[i]);
  return simde_mm512_loadu_ps(r);
}

// Out of range, as after an infinite reciprocal, the instruction answers INT32_MIN.
inline Vector cvttps_epi32(simde__m512 a) {
  const Elements<float> x(a);
  Elements<int32_t> r;
  for (int i = 0; i < 16; i++)
    r.at[i] = x.at[i] > -2147483649.0f && x.at[i] < 2147483648.0f ? static_cast<int32_t>(x.at[i]) : INT32_MIN;
  return r.vector();
}

// Reads only the bytes that the mask selects.
inline Vector maskz_loadu_epi8(simde__mmask64 mask, const void *p) {
  Elements<uint8_t> r;
  for (int i = 0; i < 64; i++)
    if (mask >> i & 1) r.at[i] = static_cast<const uint8_t *>(p)[i];
  return r.vector();
}

}  // namespace nz_simde

#define _mm512_cmpgt_epu16_mask(a, b) nz_simde::cmpgt_epu16(a, b)
#define _mm512_cmplt_epu16_mask(a, b) nz_simde::cmplt_epu16(a, b)
#define _mm512_testn_epi16_mask(a, b) nz_simde::testn_epi16(a, b)
#define _mm512_cmplt_epu32_mask(a, b) nz_simde::cmplt_epu32(a, b)
#define _mm512_mulhi_epu16(a, b) nz_simde::mulhi_epu16(a, b)
#define _mm512_mask_expand_epi16(source, mask, a) nz_simde::mask_expand_epi16(source, mask, a)
#define _mm512_maskz_expand_epi16(mask, a) nz_simde::mask_expand_epi16(simde_mm512_setzero_si512(), mask, a)
#define _mm512_maskz_compress_epi16(mask, a) nz_simde::maskz_compress_epi16(mask, a)
#define _mm512_mask_slli_epi32(source, mask, a, n) nz_simde::mask_shift_epi32(source, mask, a, n, 0)
#define _mm512_mask_srli_epi32(source, mask, a, n) nz_simde::mask_shift_epi32(source, mask, a, 0, n)
#define _mm512_cvtepu16_epi32(a) nz_simde::widen<uint16_t>(a)
#define _mm512_cvtepu8_epi32(a) nz_simde::widen<uint8_t>(a)
#define _mm512_i32gather_epi32(index, base, scale) nz_simde::i32gather_epi32(index, base, scale)
#define _mm512_cvtepu32_ps(a) nz_simde::cvtepu32_ps(a)
#define _mm512_cvttps_epi32(a) nz_simde::cvttps_epi32(a)
#define _mm512_kunpackw(a, b) (static_cast<simde__mmask32>(a) << 16 | static_cast<simde__mmask16>(b))
#define _mm512_maskz_loadu_epi8(mask, p) nz_simde::maskz_loadu_epi8(mask, p)
#define _mm512_mask_storeu_epi8(p, mask, a) nz_simde::store<uint8_t>(p, mask, a)
#define _mm512_mask_storeu_epi16(p, mask, a) nz_simde::store<uint16_t>(p, mask, a)

#endif
