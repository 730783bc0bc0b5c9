// Moving bytes ahead of their use, where nobody waits for them: to shared memory, and to the L2 cache.
#ifndef NEUZIP_CUDA_ASYNC_H
#define NEUZIP_CUDA_ASYNC_H

#include "bytes.cuh"

#if defined(__CUDACC__)
namespace nz {

// Starts copying `bytes`, at most 16, to 16 bytes of shared memory; the rest become 0. Both are aligned
// to 16.
__device__ __forceinline__ void copy16_async(void *shared, const uint8_t *from, uint32_t bytes) {
#if __CUDA_ARCH__ >= 800
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
#else
  uint4 all = {0, 0, 0, 0};
  if (bytes == 16) all = __ldg(reinterpret_cast<const uint4 *>(from));
  *static_cast<uint4 *>(shared) = all;
  if (bytes == 16) return;
#pragma unroll 1
  for (uint32_t i = 0; i < bytes; i++) static_cast<uint8_t *>(shared)[i] = __ldg(from + i);
#endif
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's groups of copies, but for the last `kLater`.
template <int kLater>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
#endif
}

// A load that is done whether or not its value is used: to decide that takes longer.
__device__ __forceinline__ uint32_t load_shared_u16(const void *shared, uint32_t offset) {
  uint16_t value;
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + offset;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(at) : "memory");
  return value;
}

__device__ __forceinline__ void prefetch(const uint8_t *at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

}  // namespace nz
#endif

#endif
