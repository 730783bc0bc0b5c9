// Values at a fixed width, for AVX2: both bytes of 32 values come from one shuffle each.
#include <immintrin.h>

#include "fixed_width.h"

namespace nz {
namespace {

inline __m256i load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }

// The exponents of ranks, as what they add to the high and to the low byte of a bf16 value.
class Exponents {
 public:
  explicit Exponents(const uint8_t *exponents) {
    const __m256i e =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(exponents)));
    high_ = _mm256_and_si256(_mm256_srli_epi16(e, 1), _mm256_set1_epi8(0x7f));
    low_ = _mm256_and_si256(_mm256_slli_epi16(e, 7), _mm256_set1_epi8(-128));
  }

  // 32 values of a block, from their ranks, one a byte, and their bytes: values of registers 4 · half and
  // 4 · half + 1 (place_in_block), interleaved, and of the next two.
  void values(__m256i ranks, const uint8_t *bytes, __m256i *first, __m256i *second) const {
    const __m256i sign = _mm256_set1_epi8(-128), raw = load(bytes);
    const __m256i high = _mm256_or_si256(_mm256_shuffle_epi8(high_, ranks), _mm256_and_si256(sign, raw));
    const __m256i low = _mm256_or_si256(_mm256_shuffle_epi8(low_, ranks), _mm256_andnot_si256(sign, raw));
    *first = _mm256_unpacklo_epi8(low, high);
    *second = _mm256_unpackhi_epi8(low, high);
  }

  // Calls use(r, pair) for r = 0, 2, 4, 6 with the interleaved values of registers r and r + 1 of a block.
  template <typename Use>
  void each_pair(const uint8_t *block, const Use &use) const {
    const __m256i low_half = _mm256_set1_epi8(0x0f), ranks = load(block);
    __m256i first, second;
    values(_mm256_and_si256(ranks, low_half), block + kRankBytes, &first, &second);
    use(0, first), use(2, second);
    values(_mm256_and_si256(_mm256_srli_epi16(ranks, 4), low_half), block + 2 * kRankBytes, &first, &second);
    use(4, first), use(6, second);
  }

 private:
  __m256i high_, low_;
};

inline __m256 even_floats(__m256i pair) { return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)); }
inline __m256 odd_floats(__m256i pair) {
  return _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}

void expand(const uint8_t *blocks, size_t count, const uint8_t *exponents, uint16_t *values) {
  const Exponents table(exponents);
  for (; count; count--, blocks += kBlockBytes, values += kBlockValues)
    table.each_pair(blocks, [&](int r, __m256i pair) {
      const __m256i even = _mm256_and_si256(pair, _mm256_set1_epi32(0xffff)),
                    odd = _mm256_srli_epi32(pair, 16);
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(even, odd), 0xd8);
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(values + 8 * r), packed);
    });
}

void expand_floats(const uint8_t *blocks, size_t count, const uint8_t *exponents, float *values) {
  const Exponents table(exponents);
  for (; count; count--, blocks += kBlockBytes, values += kBlockValues)
    table.each_pair(blocks, [&](int r, __m256i pair) {
      _mm256_storeu_ps(values + 8 * r, even_floats(pair));
      _mm256_storeu_ps(values + 8 * r + 8, odd_floats(pair));
    });
}

struct Accumulators {
  __m256 sum[8];

  explicit Accumulators(const float *sums) {
    for (int r = 0; r < 8; r++) sum[r] = _mm256_load_ps(sums + 8 * r);
  }
  void add(int r, __m256 values, const float *x) {
    sum[r] = _mm256_fmadd_ps(values, _mm256_loadu_ps(x + 8 * r), sum[r]);
  }
  void store(float *sums) const {
    for (int r = 0; r < 8; r++) _mm256_store_ps(sums + 8 * r, sum[r]);
  }
};

void multiply(const uint8_t *blocks, size_t count, const uint8_t *exponents, const float *x, float *sums) {
  const Exponents table(exponents);
  Accumulators all(sums);
  for (; count; count--, blocks += kBlockBytes, x += kBlockValues)
    table.each_pair(blocks, [&](int r, __m256i pair) __attribute__((always_inline)) {
      all.add(r, even_floats(pair), x);
      all.add(r + 1, odd_floats(pair), x);
    });
  all.store(sums);
}

void multiply_floats(const float *values, size_t count, const float *x, float *sums) {
  Accumulators all(sums);
  for (; count; count--, values += kBlockValues, x += kBlockValues)
    for (int r = 0; r < 8; r++) all.add(r, _mm256_loadu_ps(values + 8 * r), x);
  all.store(sums);
}

}  // namespace

const FixedWidthKernels kAvx2FixedWidth = {expand, expand_floats, multiply, multiply_floats};

}  // namespace nz
