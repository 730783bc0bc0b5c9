// Units to planes (§3).
#ifndef NEUZIP_CUDA_SPLIT_H
#define NEUZIP_CUDA_SPLIT_H

#include "bytes.cuh"

namespace nz {

// A unit with its top 16 bits rotated: plane p is then its byte W − 1 − p.
template <int W>
__device__ __forceinline__ typename UnitOf<W>::Type rotate(typename UnitOf<W>::Type unit) {
  typedef typename UnitOf<W>::Type Type;
  if constexpr (W == 1) {
    return unit;
  } else {
    constexpr int kTop = 8 * W - 16;
    const uint32_t top = static_cast<uint32_t>(unit >> kTop);
    const Type rotated = static_cast<uint16_t>(top << 1 | (top >> 15 & 1));
    const Type below = static_cast<Type>((static_cast<Type>(1) << kTop) - 1);
    return static_cast<Type>((unit & below) | static_cast<Type>(rotated << kTop));
  }
}

// Plane p of units, and what becomes a symbol of it.
template <int W>
struct Plane {
  typedef typename UnitOf<W>::Type Type;
  static constexpr uint32_t kPatchBytes = 3;  // §4.4
  const Type *units;
  int p;

  __device__ __forceinline__ uint32_t value(Type unit) const {
    return static_cast<uint32_t>(rotate<W>(unit) >> 8 * (W - 1 - p)) & 0xff;
  }
  __device__ __forceinline__ uint32_t symbol(Type unit) const { return value(unit); }
  __device__ __forceinline__ uint32_t at(uint32_t i) const { return value(__ldg(units + i)); }
};

}  // namespace nz

#endif
