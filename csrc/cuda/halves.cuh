// bf16 and fp16 as fp32 and back, without the headers that NVRTC may lack.
#ifndef NEUZIP_CUDA_HALVES_H
#define NEUZIP_CUDA_HALVES_H

#include "bytes.cuh"

namespace nz {

struct Bf16 {
  static __device__ __forceinline__ float wide(uint32_t bits) { return __uint_as_float(bits << 16); }

  // To the nearest, ties to even. A NaN stays one.
  static __device__ __forceinline__ uint16_t round(float value) {
    const uint32_t x = __float_as_uint(value);
    if ((x & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(x >> 16 | 0x40);
    return static_cast<uint16_t>((x + 0x7fff + (x >> 16 & 1)) >> 16);
  }
};

struct Fp16 {
  static __device__ __forceinline__ float wide(uint32_t bits) {
#if defined(__CUDACC__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(bits)));
    return value;
#else
    // Exponent and mantissa where fp32 has them; the product puts the bias right, subnormals included.
    const uint32_t magnitude = bits & 0x7fff, sign = (bits & 0x8000) << 16;
    const float scaled = __uint_as_float(magnitude << 13) * __uint_as_float((127 + 112) << 23);
    const uint32_t special = magnitude >= 0x7c00 ? 0x7f800000 : 0;  // Inf and NaN
    return __uint_as_float(__float_as_uint(scaled) | special | sign);
#endif
  }

  // To the nearest, ties to even. A NaN stays one.
  static __device__ __forceinline__ uint16_t round(float value) {
    const uint32_t x = __float_as_uint(value), magnitude = x & 0x7fffffff, sign = x >> 16 & 0x8000;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);  // from 2^16 on
    if (magnitude <
        0x38800000) {  // below 2^-14: adding ½ leaves the subnormal's bits, rounded, at the bottom
      const float half = __uint_as_float(126u << 23);
      const uint32_t bits = __float_as_uint(__uint_as_float(magnitude) + half) - __float_as_uint(half);
      return static_cast<uint16_t>(sign | bits);
    }
    const uint32_t rebiased = magnitude - (112u << 23);
    return static_cast<uint16_t>(sign | (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13);
  }
};

}  // namespace nz

#endif
