// Kernels whose results show what the emulator does.
#include "device.h"

constexpr uint32_t kAll = 0xffffffff;

// The threads' numbers, in the order in which they come.
extern "C" __global__ void nz_test_order(uint32_t *next, uint32_t *order) {
  order[atomicAdd(next, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}
NZ_KERNEL(nz_test_order);

// Where, in a run of loops of other threads, each thread stands: what turns are for.
extern "C" __global__ void nz_test_turns(uint32_t *next, uint32_t *order, uint32_t rounds) {
  for (uint32_t i = 0; i < rounds; i++) order[atomicAdd(next, 1)] = threadIdx.x;
}
NZ_KERNEL(nz_test_turns);

// What shared memory has in it before anything is written: 64 static words, then 64 dynamic ones.
extern "C" __global__ void nz_test_fresh_shared(uint32_t *out) {
  __shared__ uint32_t words[64];
  NZ_DYNAMIC_SHARED(uint32_t, more);
  uint32_t *const own = out + 128 * blockIdx.x;
  own[threadIdx.x] = words[threadIdx.x];
  own[64 + threadIdx.x] = more[threadIdx.x];
  __syncthreads();
  words[threadIdx.x] = more[threadIdx.x] = 0;
}
NZ_KERNEL(nz_test_fresh_shared);

// 11 words a thread, from its value.
extern "C" __global__ void nz_test_collectives(const uint32_t *values, uint32_t *out) {
  const uint32_t value = values[threadIdx.x], lane = threadIdx.x % 32;
  uint32_t *const own = out + 11 * threadIdx.x;
  own[0] = __ballot_sync(kAll, value % 2);
  own[1] = static_cast<uint32_t>(__all_sync(kAll, value % 2));
  own[2] = static_cast<uint32_t>(__any_sync(kAll, value > 200));
  own[3] = __shfl_sync(kAll, value, (lane * 7 + 3) % 32);
  own[4] = __shfl_up_sync(kAll, value, 5);
  own[5] = __shfl_down_sync(kAll, value, 9);
  own[6] = __shfl_xor_sync(kAll, value, 12);
  own[7] = __match_any_sync(kAll, value % 4);
  const uint64_t wide = __shfl_sync(kAll, static_cast<uint64_t>(value) << 33, 31 - lane);
  own[8] = static_cast<uint32_t>(wide >> 32);
  // Two groups, each on its own way.
  own[9] = lane % 2 ? __ballot_sync(0xaaaaaaaa, value % 3 == 0) : __ballot_sync(0x55555555, value % 3 == 0);
  own[10] = __shfl_sync(kAll, __uint_as_float(value), 2) == __uint_as_float(__shfl_sync(kAll, value, 2));
}
NZ_KERNEL(nz_test_collectives);

// Rounds of a sum through shared memory that need every barrier.
extern "C" __global__ void nz_test_barriers(const uint32_t *values, uint32_t *out) {
  __shared__ uint32_t sums[256];
  sums[threadIdx.x] = values[threadIdx.x];
  for (uint32_t step = 1; step < blockDim.x; step *= 2) {
    __syncthreads();
    const uint32_t other = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
    __syncthreads();
    sums[threadIdx.x] += other;
  }
  out[threadIdx.x] = sums[threadIdx.x];
}
NZ_KERNEL(nz_test_barriers);

// Where a thread of a grid of three dimensions is: 12 words.
extern "C" __global__ void nz_test_places(uint32_t *out) {
  const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const uint32_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  uint32_t *const own = out + 12 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
  const uint32_t words[12] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z,
                              blockDim.x,  blockDim.y,  blockDim.z,  gridDim.x,  gridDim.y,  gridDim.z};
  for (uint32_t i = 0; i < 12; i++) own[i] = words[i];
}
NZ_KERNEL(nz_test_places);

// Functions of two words: 10 results.
extern "C" __global__ void nz_test_arithmetic(uint32_t a, uint32_t b, uint32_t selector, uint64_t *out) {
  out[0] = __byte_perm(a, b, selector);
  out[1] = __umulhi(a, b);
  out[2] = __umul64hi(static_cast<uint64_t>(a) << 32 | b, static_cast<uint64_t>(b) << 32 | a);
  out[3] = static_cast<uint64_t>(__popc(a));
  out[4] = static_cast<uint64_t>(__clz(static_cast<int>(a)));
  out[5] = static_cast<uint64_t>(__ffs(static_cast<int>(a)));
  out[6] = min(a, b);
  out[7] = max(static_cast<int>(a), static_cast<int>(b)) & 0xffffffff;
  uint32_t cell = a;
  out[8] = atomicMin(&cell, b);
  out[8] = out[8] << 32 | cell;
  out[9] = atomicMax(&cell, a);
  out[9] = out[9] << 32 | cell;
}
NZ_KERNEL(nz_test_arithmetic);

// Arguments of all sizes, which the sum shows to have arrived.
extern "C" __global__ void nz_test_arguments(uint64_t *out, uint8_t a, uint16_t b, uint32_t c, uint64_t d, int32_t e,
                                             float f, double g) {
  out[0] = a + b + c + d;
  out[1] = static_cast<uint64_t>(static_cast<int64_t>(e) + static_cast<int64_t>(f * 4) + static_cast<int64_t>(g * 8));
}
NZ_KERNEL(nz_test_arguments);
