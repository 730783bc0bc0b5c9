// Bytes in memory, and the lanes of a warp.
#ifndef NEUZIP_CUDA_BYTES_H
#define NEUZIP_CUDA_BYTES_H

#include "launch.h"

namespace nz {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kAll = 0xffffffff;  // every lane of a warp
constexpr uint32_t kLow = 1u << 16;    // lower bound of a state (§4.1)

__device__ __forceinline__ uint32_t lane_id() { return threadIdx.x % kWarp; }

// Little-endian integers, aligned to their size, in memory that the kernel does not write.
__device__ __forceinline__ uint32_t load_u16(const uint8_t *p) {
  return __ldg(reinterpret_cast<const uint16_t *>(p));
}
__device__ __forceinline__ uint32_t load_u32(const uint8_t *p) {
  return __ldg(reinterpret_cast<const uint32_t *>(p));
}

// Unaligned.
__device__ __forceinline__ uint32_t load_bytes2(const uint8_t *p) { return __ldg(p) | __ldg(p + 1) << 8; }

// The sum of the values of lower lanes; *total that of all.
__device__ __forceinline__ uint32_t sum_below(uint32_t value, uint32_t *total) {
  uint32_t sum = value;
  for (uint32_t step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(kAll, sum, step);
    if (lane_id() >= step) sum += other;
  }
  *total = __shfl_sync(kAll, sum, kWarp - 1);
  return sum - value;
}

// The sum of all lanes' values, in every lane; of floats, always added up in the same order.
template <typename T>
__device__ __forceinline__ T sum_of(T value) {
  for (uint32_t step = kWarp / 2; step; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// The least of all lanes' values, in every lane.
template <typename T>
__device__ __forceinline__ T least_of(T value) {
  for (uint32_t step = kWarp / 2; step; step /= 2) {
    const T other = __shfl_xor_sync(kAll, value, step);
    value = other < value ? other : value;
  }
  return value;
}

// The unsigned integer of a unit of W bytes.
template <int W>
struct UnitOf;
template <>
struct UnitOf<1> {
  typedef uint8_t Type;
};
template <>
struct UnitOf<2> {
  typedef uint16_t Type;
};
template <>
struct UnitOf<4> {
  typedef uint32_t Type;
};
template <>
struct UnitOf<8> {
  typedef uint64_t Type;
};

}  // namespace nz

#endif
