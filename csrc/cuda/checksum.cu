// Checksums (§1) of chunks' original bytes: XXH3-64 with seed 0, by one warp. Its long form has eight
// accumulators that take 64-byte stripes; of the 16 stripes of a block the order does not matter, so a lane
// takes every fourth.
#include "task.cuh"

namespace nz {

constexpr uint64_t kPrime1 = 0x9e3779b185ebca87, kPrime2 = 0xc2b2ae3d27d4eb4f, kPrime3 = 0x165667b19e3779f9;
constexpr uint64_t kPrime4 = 0x85ebca77c2b2ae63, kPrime5 = 0x27d4eb2f165667c5;
constexpr uint64_t kMix1 = 0x165667919e3779f9, kMix2 = 0x9fb21c651e98df25;
constexpr uint32_t kShort1 = 0x9e3779b1, kShort2 = 0x85ebca77, kShort3 = 0xc2b2ae3d;

// XXH3's default secret, as little-endian integers.
__constant__ const uint64_t kSecret[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb,
    0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c, 0xa32e531b8b65d088,
    0x4ef90da297486471, 0xd8acdea946ef1938, 0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a,
    0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af};

__device__ __forceinline__ uint64_t secret(uint32_t offset) {
  const uint32_t shift = offset % 8 * 8;
  const uint64_t low = kSecret[offset / 8];
  return shift ? low >> shift | kSecret[offset / 8 + 1] << (64 - shift) : low;
}

// Little-endian integers wherever they lie.
__device__ __forceinline__ uint64_t load_any(const uint8_t *p, uint32_t bytes) {
  uint64_t value = 0;
#pragma unroll 1
  for (uint32_t i = 0; i < bytes; i++) value |= static_cast<uint64_t>(__ldg(p + i)) << 8 * i;
  return value;
}

__device__ __forceinline__ uint64_t fold(uint64_t a, uint64_t b) { return a * b ^ __umul64hi(a, b); }

__device__ __forceinline__ uint64_t avalanche(uint64_t h, uint32_t shift1, uint64_t prime1, uint32_t shift2,
                                              uint64_t prime2, uint32_t shift3) {
  h = (h ^ h >> shift1) * prime1;
  h = (h ^ h >> shift2) * prime2;
  return h ^ h >> shift3;
}
__device__ __forceinline__ uint64_t finish(uint64_t h) {
  h = (h ^ h >> 37) * kMix1;
  return h ^ h >> 32;
}

__device__ __forceinline__ uint64_t mix16(const uint8_t *p, uint32_t offset) {
  return fold(load_any(p, 8) ^ secret(offset), load_any(p + 8, 8) ^ secret(offset + 8));
}

__device__ __forceinline__ uint64_t swap32(uint32_t x) { return __byte_perm(x, 0, 0x0123); }

// 1 … 16 bytes.
__device__ inline uint64_t checksum_tiny(const uint8_t *p, uint32_t n) {
  if (n > 8) {
    const uint64_t low = load_any(p, 8) ^ secret(24) ^ secret(32),
                   high = load_any(p + n - 8, 8) ^ secret(40) ^ secret(48);
    const uint64_t swapped =
        swap32(static_cast<uint32_t>(low)) << 32 | swap32(static_cast<uint32_t>(low >> 32));
    return finish(n + swapped + high + fold(low, high));
  }
  if (n > 3) {
    uint64_t h = (load_any(p + n - 4, 4) + (load_any(p, 4) << 32)) ^ secret(8) ^ secret(16);
    h = (h ^ (h << 49 | h >> 15) ^ (h << 24 | h >> 40)) * kMix2;
    h = (h ^ ((h >> 35) + n)) * kMix2;
    return h ^ h >> 28;
  }
  const uint32_t bytes =
      __ldg(p) << 16 | static_cast<uint32_t>(__ldg(p + n / 2)) << 24 | __ldg(p + n - 1) | n << 8;
  const uint32_t flip = static_cast<uint32_t>(secret(0)) ^ static_cast<uint32_t>(secret(4));
  return avalanche(bytes ^ flip, 33, kPrime2, 29, kPrime3, 32);
}

// 17 … 240 bytes.
__device__ inline uint64_t checksum_short(const uint8_t *p, uint32_t n) {
  uint64_t h = n * kPrime1;
  if (n <= 128) {
#pragma unroll 1
    for (uint32_t i = 0; i <= (n - 1) / 32; i++)
      h += mix16(p + 16 * i, 32 * i) + mix16(p + n - 16 * (i + 1), 32 * i + 16);
    return finish(h);
  }
#pragma unroll 1
  for (uint32_t i = 0; i < 8; i++) h += mix16(p + 16 * i, 16 * i);
  h = finish(h) + mix16(p + n - 16, 119);
#pragma unroll 1
  for (uint32_t i = 8; i < n / 16; i++) h += mix16(p + 16 * i, 16 * (i - 8) + 3);
  return finish(h);
}

// What a stripe's eight bytes add to their accumulator and to its neighbour.
struct Added {
  uint64_t product, data;

  __device__ __forceinline__ void add(uint64_t value, uint64_t key) {
    const uint64_t keyed = value ^ key;
    product += (keyed & 0xffffffff) * (keyed >> 32);
    data += value;
  }
  // The sum over the stripes of all lanes, in every lane of the accumulator.
  __device__ __forceinline__ uint64_t sum() const {
    uint64_t all = product + __shfl_xor_sync(kAll, data, 1);
    all += __shfl_xor_sync(kAll, all, 8);
    return all + __shfl_xor_sync(kAll, all, 16);
  }
};

template <bool kAligned>
__device__ __forceinline__ uint64_t load8(const uint8_t *p) {
  return kAligned ? __ldg(reinterpret_cast<const unsigned long long *>(p)) : load_any(p, 8);
}

// More than 240 bytes. Lane l has accumulator l mod 8 and stripes l / 8, l / 8 + 4, …
template <bool kAligned>
__device__ __forceinline__ uint64_t checksum_long(const uint8_t *p, uint32_t n) {
  const uint32_t lane = lane_id(), own = lane % 8, group = lane / 8;
  const uint64_t first[8] = {kShort3, kPrime1, kPrime2, kPrime3, kPrime4, kShort2, kPrime5, kShort1};
  uint64_t sum = first[0];
#pragma unroll
  for (uint32_t i = 1; i < 8; i++)
    if (own == i) sum = first[i];
  const uint32_t stripes = (n - 1) / 64;  // but for the last, which ends the bytes and may overlap
#pragma unroll 1
  for (uint32_t block = 0; block * 16 < stripes; block++) {
    Added added = {0, 0};
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
      const uint32_t stripe = group + 4 * k;
      if (block * 16 + stripe < stripes)
        added.add(load8<kAligned>(p + 1024 * block + 64 * stripe + 8 * own), kSecret[stripe + own]);
    }
    sum += added.sum();
    if (block * 16 + 16 <= stripes) sum = (sum ^ sum >> 47 ^ kSecret[16 + own]) * kShort1;
  }
  Added added = {0, 0};
  if (group == 0) added.add(load_any(p + n - 64 + 8 * own, 8), secret(121 + 8 * own));
  sum += added.sum();
  // The four pairs of accumulators, each in two lanes.
  const uint64_t keyed = sum ^ secret(11 + 8 * own), other = __shfl_xor_sync(kAll, keyed, 1);
  uint64_t h = own % 2 ? 0 : fold(keyed, other);
#pragma unroll
  for (uint32_t step = 1; step < 8; step *= 2) h += __shfl_xor_sync(kAll, h, step);
  return finish(h + n * kPrime1);
}

// checksum32 of n ≥ 1 bytes.
__device__ __forceinline__ uint32_t checksum(const uint8_t *p, uint32_t n) {
  if (n <= 16) return static_cast<uint32_t>(checksum_tiny(p, n));
  if (n <= 240) return static_cast<uint32_t>(checksum_short(p, n));
  const bool aligned = reinterpret_cast<uintptr_t>(p) % 8 == 0;
  return static_cast<uint32_t>(aligned ? checksum_long<true>(p, n) : checksum_long<false>(p, n));
}

__device__ __forceinline__ uint32_t chunk_checksum(const NzJob &job, uint64_t chunk, uint32_t units) {
  return checksum(job.original + (chunk << job.chunk_log2) * job.width, units * job.width);
}

}  // namespace nz

extern "C" __global__ void __launch_bounds__(NZ_WARPS * 32, NZ_BLOCKS)
    nz_verify(const NzJob *jobs, uint32_t count, uint64_t tasks, uint32_t *status, uint64_t *first_bad) {
  nz::for_each_task(jobs, count, tasks, [&](uint64_t task, const NzJob &job, uint64_t chunk, uint32_t units) {
    if (status[task] != NZ_FAULT_NONE) return;
    if (nz::chunk_checksum(job, chunk, units) != job.chunks[chunk].checksum)
      nz::flag(task, NZ_FAULT_CHECKSUM, status, first_bad);
  });
}
NZ_KERNEL(nz_verify);

extern "C" __global__ void __launch_bounds__(NZ_WARPS * 32, NZ_BLOCKS)
    nz_checksum(const NzJob *jobs, uint32_t count, uint64_t tasks) {
  nz::for_each_task(jobs, count, tasks, [&](uint64_t, const NzJob &job, uint64_t chunk, uint32_t units) {
    const uint32_t sum = nz::chunk_checksum(job, chunk, units);
    if (nz::lane_id() == 0) job.chunks[chunk].checksum = sum;
  });
}
NZ_KERNEL(nz_checksum);
