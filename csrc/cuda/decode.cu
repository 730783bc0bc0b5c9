// Chunks to original bytes (launch.h).
#include "decode.cuh"
#include "task.cuh"

namespace nz {

template <int W>
__device__ __forceinline__ void decode_tasks(const NzJob *jobs, uint32_t count, uint64_t tasks,
                                             uint32_t *status, uint64_t *first_bad, Workspace<W> *shared) {
  Bench<W> bench = {shared, nullptr};
  for_each_task(jobs, count, tasks, [&](uint64_t task, const NzJob &job, uint64_t chunk, uint32_t units) {
    const NzChunk &c = job.chunks[chunk];
    uint8_t *const dst = job.original + (chunk << job.chunk_log2) * W;
    const uint32_t fault =
        decode_chunk<W>(job.packed + c.offset, c.size, job.kind, job.tables + c.table, units, dst, &bench);
    flag(task, fault, status, first_bad);
    __syncwarp();  // shared memory is free for the next
  });
}

}  // namespace nz

#define NZ_DECODE(W)                                                                              \
  extern "C" __global__ void __launch_bounds__(NZ_WARPS * 32, NZ_BLOCKS) nz_decode_w##W(          \
      const NzJob *jobs, uint32_t count, uint64_t tasks, uint32_t *status, uint64_t *first_bad) { \
    __shared__ nz::Workspace<W> shared[NZ_WARPS];                                                 \
    nz::decode_tasks<W>(jobs, count, tasks, status, first_bad, &shared[threadIdx.x / 32]);        \
  }                                                                                               \
  NZ_KERNEL(nz_decode_w##W)
NZ_DECODE(1);
NZ_DECODE(2);
NZ_DECODE(4);
NZ_DECODE(8);
