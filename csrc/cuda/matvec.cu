// Products of a few vectors with a compressed matrix: a warp decodes a chunk into shared memory, multiplies
// its stretch of each row, and forgets it (launch.h). Each chunk's sums have a place of their own and are
// added up afterwards in the order of the chunks, so that the result depends on nothing but the numbers.
#include "decode.cuh"
#include "halves.cuh"
#include "task.cuh"

namespace nz {

// How many chunks a job has.
__device__ __forceinline__ uint64_t chunk_count(const NzJob &job) {
  return ((job.units - 1) >> job.chunk_log2) + 1;
}

// Four halves, wide.
template <typename Value>
struct Four {
  float value[4];

  __device__ __forceinline__ explicit Four(uint64_t bits) {
    const uint32_t low = static_cast<uint32_t>(bits), high = static_cast<uint32_t>(bits >> 32);
    value[0] = Value::wide(low & 0xffff);
    value[1] = Value::wide(low >> 16);
    value[2] = Value::wide(high & 0xffff);
    value[3] = Value::wide(high >> 16);
  }
};

// Adds the products of `count` values, a multiple of 4, with those of each vector; these are `stride` apart.
// Addresses are multiples of 8. Products of two halves are exact in fp32.
template <typename Value>
__device__ __forceinline__ void add_products(const uint16_t *w, const uint16_t *x, uint64_t stride,
                                             uint32_t batch, uint32_t count, float *sums) {
  const uint64_t *weights = reinterpret_cast<const uint64_t *>(w) + lane_id();
  const uint64_t *const end = reinterpret_cast<const uint64_t *>(w + count);
  x += 4 * lane_id();
#pragma unroll 1
  for (; weights < end; weights += kWarp, x += 4 * kWarp) {
    const Four<Value> weight(*weights);
    const uint16_t *at = x;
#pragma unroll
    for (uint32_t b = 0; b < NZ_MATVEC_BATCH; b++) {
      if (b == batch) break;
      const Four<Value> other(__ldg(reinterpret_cast<const uint64_t *>(at)));
#pragma unroll
      for (uint32_t k = 0; k < 4; k++) sums[b] += weight.value[k] * other.value[k];
      at += stride;
    }
  }
}

// A chunk's part of each row it touches, times each vector.
template <typename Value>
__device__ __forceinline__ void multiply_chunk(const NzMatvec &m, uint64_t chunk, uint32_t units,
                                               const uint16_t *tile, bool good) {
  const uint64_t first = chunk << m.job.chunk_log2, places = chunk_count(m.job) + m.rows;
  const uint16_t *const x = reinterpret_cast<const uint16_t *>(m.x);
  const float start = good ? 0.0f : __uint_as_float(0x7fffffff);  // NaN
  uint64_t row = first / m.columns, column = first % m.columns;
#pragma unroll 1
  for (uint32_t at = 0; at < units; row++) {
    const uint64_t left = m.columns - column;
    const uint32_t count = left < units - at ? static_cast<uint32_t>(left) : units - at;
    float sums[NZ_MATVEC_BATCH];
#pragma unroll
    for (uint32_t b = 0; b < NZ_MATVEC_BATCH; b++) sums[b] = start;
    if (good) add_products<Value>(tile + at, x + column, m.columns, m.batch, count, sums);
#pragma unroll
    for (uint32_t b = 0; b < NZ_MATVEC_BATCH; b++) {
      if (b == m.batch) break;
      const float sum = sum_of(sums[b]);
      if (lane_id() == 0) m.partial[b * places + chunk + row] = sum;
    }
    at += count;
    column = 0;
  }
}

template <typename Value>
__device__ __forceinline__ void multiply_tasks(const NzMatvec &m, uint64_t tasks, uint32_t *status,
                                               uint64_t *first_bad, Workspace<2> *shared, uint16_t *tile) {
  Bench<2> bench = {shared, nullptr};
  for_each_task(&m.job, 1, tasks, [&](uint64_t task, const NzJob &job, uint64_t chunk, uint32_t units) {
    const NzChunk &c = job.chunks[chunk];
    const uint32_t fault = decode_chunk<2>(job.packed + c.offset, c.size, job.kind, job.tables + c.table,
                                           units, reinterpret_cast<uint8_t *>(tile), &bench);
    flag(task, fault, status, first_bad);
    __syncwarp();  // the tile is written
    multiply_chunk<Value>(m, chunk, units, tile, fault == NZ_FAULT_NONE);
    __syncwarp();  // shared memory is free for the next
  });
}

template <typename Value>
__device__ __forceinline__ void sum_chunks(const NzMatvec &m) {
  const uint64_t places = chunk_count(m.job) + m.rows, stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
#pragma unroll 1
  for (; i < m.batch * m.rows; i += stride) {
    const uint64_t row = i % m.rows, from = row * m.columns >> m.job.chunk_log2;
    const uint64_t last = ((row + 1) * m.columns - 1) >> m.job.chunk_log2;
    const float *const partial = m.partial + i / m.rows * places + row;
    float sum = 0;
#pragma unroll 1
    for (uint64_t chunk = from; chunk <= last; chunk++) sum += partial[chunk];
    reinterpret_cast<uint16_t *>(m.y)[i] = Value::round(sum);
  }
}

}  // namespace nz

#define NZ_MATVEC(name, Value)                                                                          \
  extern "C" __global__ void __launch_bounds__(NZ_WARPS * 32, NZ_BLOCKS)                                \
      nz_matvec_##name(const NzMatvec *matvec, uint64_t tasks, uint32_t *status, uint64_t *first_bad) { \
    __shared__ nz::Workspace<2> shared[NZ_WARPS];                                                       \
    NZ_DYNAMIC_SHARED(uint16_t, tiles);                                                                 \
    const uint32_t warp = threadIdx.x / 32;                                                             \
    nz::multiply_tasks<nz::Value>(*matvec, tasks, status, first_bad, &shared[warp],                     \
                                  tiles + (static_cast<uint64_t>(warp) << matvec->job.chunk_log2));     \
  }                                                                                                     \
  NZ_KERNEL(nz_matvec_##name);                                                                          \
  extern "C" __global__ void __launch_bounds__(256) nz_matvec_sum_##name(const NzMatvec *matvec) {      \
    nz::sum_chunks<nz::Value>(*matvec);                                                                 \
  }                                                                                                     \
  NZ_KERNEL(nz_matvec_sum_##name)
NZ_MATVEC(bf16, Bf16);
NZ_MATVEC(f16, Fp16);
