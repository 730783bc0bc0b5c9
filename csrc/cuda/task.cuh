// Which chunk a warp works on (launch.h).
#ifndef NEUZIP_CUDA_TASK_H
#define NEUZIP_CUDA_TASK_H

#include "bytes.cuh"

namespace nz {

// Calls work(task, job, chunk, units) for every task of this warp; all lanes together.
template <typename Work>
__device__ __forceinline__ void for_each_task(const NzJob *jobs, uint32_t count, uint64_t tasks, Work work) {
  const uint64_t warps = static_cast<uint64_t>(gridDim.x) * NZ_WARPS;
  uint64_t task = static_cast<uint64_t>(blockIdx.x) * NZ_WARPS + threadIdx.x / kWarp;
#pragma unroll 1
  for (; task < tasks; task += warps) {
    // The last job that begins at or before the task.
    uint32_t low = 0, high = count;
#pragma unroll 1
    while (high - low > 1) {
      const uint32_t middle = low + (high - low) / 2;
      if (jobs[middle].first <= task)
        low = middle;
      else
        high = middle;
    }
    const NzJob &job = jobs[low];
    const uint64_t chunk = task - job.first, left = job.units - (chunk << job.chunk_log2);
    const uint32_t full = 1u << job.chunk_log2;
    work(task, job, chunk, left < full ? static_cast<uint32_t>(left) : full);
  }
}

__device__ __forceinline__ void flag(uint64_t task, uint32_t fault, uint32_t *status, uint64_t *first_bad) {
  __syncwarp();
  if (lane_id() != 0) return;
  status[task] = fault;
  if (fault) atomicMin(reinterpret_cast<unsigned long long *>(first_bad), task);
}

}  // namespace nz

#endif
