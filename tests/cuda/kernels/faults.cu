// Kernels that do what the emulator must report, one a kernel. Block (64) unless said otherwise.
#include "device.h"

namespace {

constexpr uint32_t kAll = 0xffffffff, kLow = 0x0000ffff;

__device__ __forceinline__ uint32_t lane() { return threadIdx.x % 32; }

}  // namespace

extern "C" __global__ void nz_test_two_collectives(uint32_t *out) {
  if (lane() < 16)
    out[threadIdx.x] = __ballot_sync(kAll, true);
  else
    out[threadIdx.x] = static_cast<uint32_t>(__all_sync(kAll, true));
}
NZ_KERNEL(nz_test_two_collectives);

extern "C" __global__ void nz_test_two_lines(uint32_t *out) {
  if (lane() == 7)
    out[threadIdx.x] = __ballot_sync(kAll, true);
  else
    out[threadIdx.x] = __ballot_sync(kAll, false);
}
NZ_KERNEL(nz_test_two_lines);

// As above, unless out[0] says that all lanes go one way: the emulator must not see divergence where there is none.
extern "C" __global__ void nz_test_uniform_branch(uint32_t *out) {
  if (out[0] == 1)
    out[1 + threadIdx.x] = __ballot_sync(kAll, lane() % 2);
  else
    out[1 + threadIdx.x] = __ballot_sync(kAll, true);
}
NZ_KERNEL(nz_test_uniform_branch);

extern "C" __global__ void nz_test_two_masks(uint32_t *out) {
  out[threadIdx.x] = __ballot_sync(lane() < 16 ? kAll : kAll << 1, true);
}
NZ_KERNEL(nz_test_two_masks);

// Lane 20 waits for lane 3, which waits for others only.
extern "C" __global__ void nz_test_one_sided_mask(uint32_t *out) {
  out[threadIdx.x] = lane() < 16 ? __ballot_sync(kLow, true) : __ballot_sync(~kLow | 1u << 3, true);
  __syncwarp();
}
NZ_KERNEL(nz_test_one_sided_mask);

// Each of three lanes waits for the next.
extern "C" __global__ void nz_test_circle(uint32_t *out) {
  if (threadIdx.x >= 3) return;
  const uint32_t next = (threadIdx.x + 1) % 3;
  out[threadIdx.x] = __ballot_sync(1u << threadIdx.x | 1u << next, true);
}
NZ_KERNEL(nz_test_circle);

extern "C" __global__ void nz_test_not_in_mask(uint32_t *out) { out[threadIdx.x] = __ballot_sync(kLow, true); }
NZ_KERNEL(nz_test_not_in_mask);

extern "C" __global__ void nz_test_shuffle_outside(uint32_t *out) {
  if (lane() < 16) out[threadIdx.x] = __shfl_sync(kLow, lane(), 20);
}
NZ_KERNEL(nz_test_shuffle_outside);

extern "C" __global__ void nz_test_leave_early(uint32_t *out) {
  if (lane() == 5) return;
  __syncwarp();
  out[threadIdx.x] = 1;
}
NZ_KERNEL(nz_test_leave_early);

// Block (48): the second warp has half its lanes.
extern "C" __global__ void nz_test_half_a_warp(uint32_t *out) {
  __syncwarp();
  out[threadIdx.x] = 1;
}
NZ_KERNEL(nz_test_half_a_warp);

extern "C" __global__ void nz_test_barrier_without_all(uint32_t *out) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
NZ_KERNEL(nz_test_barrier_without_all);

extern "C" __global__ void nz_test_two_barriers(uint32_t *out) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
NZ_KERNEL(nz_test_two_barriers);

extern "C" __global__ void nz_test_barrier_or_collective(uint32_t *out) {
  if (lane() == 0)
    __syncthreads();
  else
    __syncwarp();
  out[threadIdx.x] = 1;
}
NZ_KERNEL(nz_test_barrier_or_collective);

extern "C" __global__ void nz_test_endless(uint32_t *out) {
  volatile uint32_t *const stop = out;
  while (!*stop) {
  }
}
NZ_KERNEL(nz_test_endless);

extern "C" __global__ void nz_test_endless_together(uint32_t *out) {
  while (!__any_sync(kAll, *out)) {
  }
}
NZ_KERNEL(nz_test_endless_together);

// The first thread waits for the last one's store: it ends, because turns do.
extern "C" __global__ void nz_test_wait_for_store(uint32_t *out) {
  volatile uint32_t *const flag = out;
  if (threadIdx.x == 63) *flag = 1;
  if (threadIdx.x == 0) {
    while (!*flag) {
    }
    out[1] = 1;
  }
}
NZ_KERNEL(nz_test_wait_for_store);

extern "C" __global__ void nz_test_misaligned(uint32_t *out) {
  const uint8_t *const bytes = reinterpret_cast<const uint8_t *>(out);
  out[threadIdx.x] = __ldg(reinterpret_cast<const uint16_t *>(bytes + 3));
}
NZ_KERNEL(nz_test_misaligned);

// What a sanitizer must see. Block (32).

// way: how lane 1 comes to read what lane 0 has written. 0: at once; 1: after a ballot, which orders nothing;
// 2: after __syncwarp; 3: after __syncthreads.
extern "C" __global__ void nz_test_race(uint32_t *out, uint32_t way) {
  __shared__ uint32_t cell;
  if (threadIdx.x == 0) cell = 7;
  if (way == 1) out[1] = __ballot_sync(kAll, true) & 1;
  if (way == 2) __syncwarp();
  if (way == 3) __syncthreads();
  if (threadIdx.x == 1) out[0] = cell;
}
NZ_KERNEL(nz_test_race);

// The same through device memory, where both write.
extern "C" __global__ void nz_test_race_of_stores(uint32_t *out, uint32_t way) {
  if (threadIdx.x == 0) out[0] = 7;
  if (way == 2) __syncwarp();
  if (threadIdx.x == 1) out[0] = 7;
}
NZ_KERNEL(nz_test_race_of_stores);

// Writes a word at `at` of static shared memory (where 0), dynamic shared memory (1) or device memory (2), each of
// 8 words.
extern "C" __global__ void nz_test_out_of_bounds(uint32_t *out, uint32_t where, int32_t at) {
  __shared__ uint32_t words[8];
  NZ_DYNAMIC_SHARED(uint32_t, more);
  if (threadIdx.x != 0) return;
  uint32_t *const start = where == 0 ? words : where == 1 ? more : out;
  start[at] = 1;
}
NZ_KERNEL(nz_test_out_of_bounds);

// Writes at an address that is no multiple of four, which a GPU refuses and a CPU does not mind.
extern "C" __global__ void nz_test_misaligned_store(uint32_t *out) {
  uint8_t *const bytes = reinterpret_cast<uint8_t *>(out);
  if (threadIdx.x == 0) *reinterpret_cast<uint32_t *>(bytes + 1) = 1;
}
NZ_KERNEL(nz_test_misaligned_store);
