// bf16 values at a fixed width of 12 bits, in memory only: any of them is found without decoding what lies
// before it, at many times the speed of an entropy coder. Nothing in formats/spec.md knows of this form.
//
// A value is a byte, its sign and mantissa, and the rank of its exponent among the fifteen most frequent ones
// of its tensor; values of other exponents have any rank and are listed. 64 values are a block of 96 bytes:
// 32 bytes of ranks, then the 64 bytes. Where a value lies in its block follows from the loops for AVX2, in
// which eight registers shall come out with eight consecutive values each (place_in_block).
#ifndef NEUZIP_FIXED_WIDTH_H
#define NEUZIP_FIXED_WIDTH_H

#include <cstddef>
#include <cstdint>

namespace nz {

constexpr size_t kBlockValues = 64;
constexpr size_t kBlockBytes = 96;
constexpr size_t kRankBytes = 32;
constexpr size_t kFixedHeader = 64;  // magic; number of values, u64; exponents of the ranks, u8 × 16
constexpr size_t kCountAt = 8;
constexpr size_t kExponentsAt = 16;
constexpr uint8_t kFixedMagic[4] = {'N', 'Z', '1', '2'};

// The byte that holds the sign and mantissa of value i; byte p's rank is the low half of rank byte p, or the
// high half of rank byte p − 32.
constexpr size_t place_in_block(size_t i) {
  const size_t reg = i / 8, lane = i % 8;
  return reg / 4 * 32 + lane / 4 * 16 + reg / 2 % 2 * 8 + lane % 4 * 2 + reg % 2;
}

// A value whose exponent has no rank. In the order of the values.
struct __attribute__((packed, may_alias)) Escape {
  uint32_t block;
  uint16_t index;  // in the block
  uint16_t value;
};
static_assert(sizeof(Escape) == 8, "no padding");

// Products are summed as torch's kernels sum them for x86 processors with AVX2: value i of a block into sum
// i, by fused multiply-add, block after block.
using Sums = float[kBlockValues];

struct FixedWidthKernels {
  // The values of `count` blocks, as bf16 and as floats. `exponents` are those of the 16 ranks.
  void (*expand)(const uint8_t *blocks, size_t count, const uint8_t *exponents, uint16_t *values);
  void (*expand_floats)(const uint8_t *blocks, size_t count, const uint8_t *exponents, float *values);
  // sums += values · x, for the values of `count` blocks, and for floats.
  void (*multiply)(const uint8_t *blocks, size_t count, const uint8_t *exponents, const float *x,
                   float *sums);
  void (*multiply_floats)(const float *values, size_t count, const float *x, float *sums);
};

extern const FixedWidthKernels kScalarFixedWidth;
#if defined(NEUZIP_HAVE_AVX2)
extern const FixedWidthKernels kAvx2FixedWidth;
#endif

}  // namespace nz

#endif
