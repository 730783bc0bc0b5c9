// Original bytes to chunks: each into a slot, then to its place (launch.h).
#include "encode.cuh"
#include "task.cuh"

namespace nz {

template <int W>
__device__ __forceinline__ void encode_tasks(const NzJob *jobs, uint32_t count, uint64_t tasks,
                                             EncodeShared *shared) {
  typedef typename UnitOf<W>::Type Type;
  EncodeBench bench = {shared, nullptr};
  for_each_task(jobs, count, tasks, [&](uint64_t, const NzJob &job, uint64_t chunk, uint32_t units) {
    const uint64_t room = NZ_SLOT_BYTES(W, job.chunk_log2);
    uint8_t *const slot = job.slots + chunk * room;
    const EncodeTask<W> task = {reinterpret_cast<const Type *>(job.original) + (chunk << job.chunk_log2),
                                units, job.kind, job.tables + job.chunks[chunk].table,
                                reinterpret_cast<uint16_t *>(slot + room)};
    const uint32_t size = encode_chunk<W>(task, slot, &bench);
    if (lane_id() == 0) job.chunks[chunk].size = size;
    __syncwarp();  // shared memory is free for the next
  });
}

__device__ __forceinline__ void place_chunks(const NzJob &job) {
  const uint64_t chunks = ((job.units - 1) >> job.chunk_log2) + 1;
  uint64_t at = job.packed_at;
#pragma unroll 1
  for (uint64_t chunk = lane_id(); chunk - lane_id() < chunks; chunk += kWarp) {
    uint32_t total;  // of 32 chunks, each below 2^20 bytes
    const uint32_t below = sum_below(chunk < chunks ? job.chunks[chunk].size : 0, &total);
    if (chunk < chunks) job.chunks[chunk].offset = at + below;
    at += total;
  }
}

__device__ __forceinline__ void copy_chunk(const NzJob &job, uint64_t chunk) {
  const NzChunk &c = job.chunks[chunk];
  if (c.offset > job.capacity || c.size > job.capacity - c.offset) return;
  const uint8_t *const slot = job.slots + chunk * NZ_SLOT_BYTES(job.width, job.chunk_log2);
  uint32_t *const to = reinterpret_cast<uint32_t *>(job.packed + c.offset);
#pragma unroll 4
  for (uint32_t i = lane_id(); i < c.size / 4; i += kWarp) to[i] = load_u32(slot + 4 * i);
}

}  // namespace nz

#define NZ_ENCODE(W)                                                      \
  extern "C" __global__ void __launch_bounds__(NZ_WARPS * 32, NZ_BLOCKS)  \
      nz_encode_w##W(const NzJob *jobs, uint32_t count, uint64_t tasks) { \
    __shared__ nz::EncodeShared shared[NZ_WARPS];                         \
    nz::encode_tasks<W>(jobs, count, tasks, &shared[threadIdx.x / 32]);   \
  }                                                                       \
  NZ_KERNEL(nz_encode_w##W)
NZ_ENCODE(1);
NZ_ENCODE(2);
NZ_ENCODE(4);
NZ_ENCODE(8);

extern "C" __global__ void __launch_bounds__(32) nz_place(const NzJob *jobs, uint32_t count) {
  for (uint32_t j = blockIdx.x; j < count; j += gridDim.x) nz::place_chunks(jobs[j]);
}
NZ_KERNEL(nz_place);

extern "C" __global__ void __launch_bounds__(NZ_WARPS * 32, NZ_BLOCKS)
    nz_compact(const NzJob *jobs, uint32_t count, uint64_t tasks) {
  nz::for_each_task(jobs, count, tasks,
                    [](uint64_t, const NzJob &job, uint64_t chunk, uint32_t) { nz::copy_chunk(job, chunk); });
}
NZ_KERNEL(nz_compact);
