// Units to planes and back, nothing coded; and the counts that tables are made from (launch.h).
#include "merge.cuh"
#include "split.cuh"

namespace nz {

constexpr uint32_t kThreads = 256;  // of a block of these kernels

// Calls work(planes, unit) for every unit. Tensors begin at successive blocks, so that many small ones
// spread.
template <typename Work>
__device__ __forceinline__ void for_each_unit(const NzPlanes *planes, uint32_t count, Work work) {
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (uint32_t k = 0; k < count; k++) {
    const NzPlanes &p = planes[k];
    const uint64_t block = (blockIdx.x + static_cast<uint64_t>(k)) % gridDim.x;
#pragma unroll 1
    for (uint64_t i = block * kThreads + threadIdx.x; i < p.count; i += stride) work(p, i);
  }
}

template <int W>
__device__ __forceinline__ void split_unit(const NzPlanes &planes, uint64_t i) {
  const typename UnitOf<W>::Type unit =
      rotate<W>(__ldg(reinterpret_cast<const typename UnitOf<W>::Type *>(planes.units) + i));
#pragma unroll
  for (int p = 0; p < W; p++)
    planes.planes[static_cast<uint64_t>(p) * planes.stride + i] =
        static_cast<uint8_t>(unit >> 8 * (W - 1 - p));
}

template <int W>
__device__ __forceinline__ void merge_unit(const NzPlanes &planes, uint64_t i) {
  typedef typename UnitOf<W>::Type Type;
  Type low = 0;
#pragma unroll
  for (int p = 1; p < W; p++)
    low = static_cast<Type>(low << 8 | __ldg(planes.planes + static_cast<uint64_t>(p) * planes.stride + i));
  reinterpret_cast<Type *>(planes.units)[i] = Plane0<W>().unit(__ldg(planes.planes + i), low);
}

// Adds the sample of a segment to the block's counts; W is the width of its units.
template <int W>
__device__ __forceinline__ void count_sample(const NzSegment &segment, uint32_t *counts) {
  constexpr uint32_t kPlace = 64;  // units in a row
  const Plane<W> plane0 = {reinterpret_cast<const typename UnitOf<W>::Type *>(segment.units), 0};
  const uint64_t places = (segment.count + kPlace - 1) / kPlace;
#pragma unroll 1
  for (uint64_t k = threadIdx.x / kPlace; k < segment.taken; k += kThreads / kPlace) {
    const uint64_t i = k * places / segment.taken * kPlace + threadIdx.x % kPlace;
    if (i >= segment.count) continue;
    const typename UnitOf<W>::Type unit = rotate<W>(__ldg(plane0.units + i));
    atomicAdd(&counts[static_cast<uint32_t>(unit >> 8 * (W - 1))], 1u);
    if constexpr (W > 1)
      if (segment.heads) atomicAdd(&counts[256 + static_cast<uint32_t>(unit >> (8 * W - 10))], 1u);
  }
}

}  // namespace nz

extern "C" __global__ void __launch_bounds__(nz::kThreads) nz_split(const NzPlanes *planes, uint32_t count) {
  nz::for_each_unit(planes, count, [](const NzPlanes &p, uint64_t i) {
    if (p.width == 1) nz::split_unit<1>(p, i);
    if (p.width == 2) nz::split_unit<2>(p, i);
    if (p.width == 4) nz::split_unit<4>(p, i);
    if (p.width == 8) nz::split_unit<8>(p, i);
  });
}
NZ_KERNEL(nz_split);

extern "C" __global__ void __launch_bounds__(nz::kThreads) nz_merge(const NzPlanes *planes, uint32_t count) {
  nz::for_each_unit(planes, count, [](const NzPlanes &p, uint64_t i) {
    if (p.width == 1) nz::merge_unit<1>(p, i);
    if (p.width == 2) nz::merge_unit<2>(p, i);
    if (p.width == 4) nz::merge_unit<4>(p, i);
    if (p.width == 8) nz::merge_unit<8>(p, i);
  });
}
NZ_KERNEL(nz_merge);

extern "C" __global__ void __launch_bounds__(nz::kThreads)
    nz_sample(const NzSegment *segments, uint32_t count, uint32_t *counts) {
  __shared__ uint32_t shared[NZ_SEGMENT_COUNTS];
#pragma unroll 1
  for (uint32_t k = blockIdx.x; k < count; k += gridDim.x) {
    const NzSegment &segment = segments[k];
    for (uint32_t s = threadIdx.x; s < NZ_SEGMENT_COUNTS; s += nz::kThreads) shared[s] = 0;
    __syncthreads();
    if (segment.width == 1) nz::count_sample<1>(segment, shared);
    if (segment.width == 2) nz::count_sample<2>(segment, shared);
    if (segment.width == 4) nz::count_sample<4>(segment, shared);
    if (segment.width == 8) nz::count_sample<8>(segment, shared);
    __syncthreads();
    for (uint32_t s = threadIdx.x; s < NZ_SEGMENT_COUNTS; s += nz::kThreads)
      counts[static_cast<uint64_t>(k) * NZ_SEGMENT_COUNTS + s] = shared[s];
    __syncthreads();
  }
}
NZ_KERNEL(nz_sample);
