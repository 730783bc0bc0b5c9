// Planes to units (§3, §4.6): the bytes below plane 0, and how plane 0 joins them.
#ifndef NEUZIP_CUDA_MERGE_H
#define NEUZIP_CUDA_MERGE_H

#include "chunk.cuh"

namespace nz {

// Steps whose loads are in flight together, as many as registers allow; blocks of mode six have 128 units.
template <int W>
constexpr uint32_t kBatch = W > 2 ? 8 : 16;
template <int W>
constexpr uint32_t kBatchUnits = kBatch<W> * kWarp;

// What is needed two batches later is brought to the L2 cache: kCount bytes, in lines of 128.
template <uint32_t kCount>
__device__ __forceinline__ void prefetch_lines(const uint8_t *bytes) {
  if (128 * lane_id() < kCount) prefetch(bytes + 128 * lane_id());
}

// Where a plane's bytes are: byte i at bytes[i · stride]. A constant plane has stride 0; one of mode local
// has been decoded to its places in the units.
struct PlaneBytes {
  const uint8_t *bytes;
  uint32_t stride;
  uint32_t count;  // bytes that are there; the rest is the stream's payload (§4.5) and comes later

  __device__ __forceinline__ uint32_t at(uint32_t i) const {
    return i < count ? bytes[static_cast<uint64_t>(i) * stride] : 0;
  }
};

// Planes 1 … W − 1 of unit i as an integer, the last in its low byte.
template <int W>
struct AnyPlanes {
  typedef typename UnitOf<W>::Type Type;
  static constexpr bool kBatched = false;
  const PlaneBytes *plane;

  __device__ __forceinline__ Type low(uint32_t i) const {
    Type low = 0;
#pragma unroll 1
    for (int p = 1; p < W; p++) low = static_cast<Type>(low << 8 | plane[p].at(i));
    return low;
  }
};

// All of them raw: the common case, in which a load is one instruction.
template <int W>
struct RawPlanes {
  typedef typename UnitOf<W>::Type Type;
  static constexpr bool kBatched = true;
  const uint8_t *last;  // plane W − 1; the one before follows, aligned to 4 (§4)
  uint32_t units;
  uint32_t count;  // of plane 1, as above

  __device__ __forceinline__ const uint8_t *plane(int p) const {
    return last + static_cast<uint32_t>(W - 1 - p) * ((units + 3) / 4 * 4);
  }
  __device__ __forceinline__ Type low(uint32_t i) const {
    Type low = 0;
#pragma unroll
    for (int p = 1; p < W; p++)
      low = static_cast<Type>(low << 8 | (p > 1 || i < count ? __ldg(plane(p) + i) : 0));
    return low;
  }
  __device__ __forceinline__ void load(uint32_t at, Type *lows) const {
#pragma unroll
    for (uint32_t j = 0; j < kBatch<W>; j++) lows[j] = 0;
#pragma unroll
    for (int p = 1; p < W; p++) {
      const uint8_t *const bytes = plane(p) + at;
#pragma unroll
      for (uint32_t j = 0; j < kBatch<W>; j++)
        lows[j] = static_cast<Type>(lows[j] << 8 | __ldg(bytes + j * kWarp));
    }
  }
  // Of the batch that begins at unit `at`.
  __device__ __forceinline__ void look_ahead(uint32_t at) const {
#pragma unroll
    for (int p = 1; p < W; p++) prefetch_lines<kBatchUnits<W>>(plane(p) + at);
  }
  // How many units from the first have all bytes.
  __device__ __forceinline__ uint32_t whole() const { return W == 1 ? units : count; }
};

// Plane 1 in mode six (§4.6).
template <int W>
struct SixPlanes {
  typedef typename UnitOf<W>::Type Type;
  static constexpr bool kBatched = W == 2;
  const PlaneBytes *plane;
  PlaneBytes packed;  // plane 1

  __device__ __forceinline__ Type low(uint32_t i) const {
    const uint32_t lane = i % 32, quarter = i / 32 % 4, at = i / 128 * 96 + lane;
    Type low = static_cast<Type>(quarter < 3 ? packed.at(at + 32 * quarter) & 63
                                             : packed.at(at) >> 6 | packed.at(at + 32) >> 6 << 2 |
                                                   packed.at(at + 64) >> 6 << 4);
#pragma unroll 1
    for (int p = 2; p < W; p++) low = static_cast<Type>(low << 8 | plane[p].at(i));
    return low;
  }
  __device__ __forceinline__ void load(uint32_t at, Type *lows) const {
    const uint8_t *bytes = packed.bytes + (at - at / kWarp * (kWarp / 4));  // at % 128 is the lane
#pragma unroll
    for (uint32_t block = 0; block < kBatch<W> / 4; block++, bytes += 96) {
      const uint32_t b0 = __ldg(bytes), b1 = __ldg(bytes + 32), b2 = __ldg(bytes + 64);
      const uint32_t sixes[4] = {b0 & 63, b1 & 63, b2 & 63, b0 >> 6 | b1 >> 6 << 2 | b2 >> 6 << 4};
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) lows[4 * block + j] = static_cast<Type>(sixes[j]);
    }
  }
  __device__ __forceinline__ void look_ahead(uint32_t at) const {
    prefetch_lines<kBatchUnits<W> / 4 * 3>(packed.bytes + at / 4 * 3);
  }
  __device__ __forceinline__ uint32_t whole() const { return packed.count / 96 * 128; }
};

// The top 16 bits of a unit from plane 0 in byte 0 of `plane0` and plane 1 in byte 0 of `plane1`: their
// rotation to the right. What is above is of no meaning.
__device__ __forceinline__ uint32_t join(uint32_t plane0, uint32_t plane1) {
  return __byte_perm(plane0, plane1, 0x0404) >> 1;
}

template <int W>
__device__ __forceinline__ typename UnitOf<W>::Type make_unit(uint32_t top, typename UnitOf<W>::Type low) {
  typedef typename UnitOf<W>::Type Type;
  if (W == 2) return static_cast<Type>(top);
  constexpr int kTop = 8 * W - 16;
  const Type below = static_cast<Type>((static_cast<Type>(1) << (W > 2 ? kTop : 0)) - 1);
  return static_cast<Type>(static_cast<Type>(static_cast<uint16_t>(top)) << (W > 2 ? kTop : 0) |
                           (low & below));
}

// How plane 0 comes: `symbol` is what the stream (or the plane itself) says.
template <int W>
struct Plane0 {
  typedef typename UnitOf<W>::Type Type;

  __device__ __forceinline__ Type unit(uint32_t symbol, Type low) const {
    if (W == 1) return static_cast<Type>(symbol);
    return make_unit<W>(join(symbol, static_cast<uint32_t>(low >> (W > 1 ? 8 * (W - 2) : 0))), low);
  }
};

// Mode joint: a symbol, below bits of no meaning, that says the head instead of plane 0.
template <int W>
struct Heads {
  typedef typename UnitOf<W>::Type Type;
  uint32_t first;  // the head of symbol 0, where a pair has it

  __device__ __forceinline__ Type unit(uint32_t symbol, Type low) const {
    const uint32_t six = static_cast<uint32_t>(low >> 8 * (W - 2)) & 63;
    const uint32_t pair = ((symbol & 0xff) << 6) + (first | six);
    return make_unit<W>(__byte_perm(pair, 0, 0x1010) >> 1, low);
  }
};

// Units of which parts come late. The top 16 bits are rotated: sign, plane 0, the rest of plane 1.
template <int W>
__device__ __forceinline__ void add_plane1(typename UnitOf<W>::Type *unit, uint32_t bits) {
  typedef typename UnitOf<W>::Type Type;
  const uint16_t top = static_cast<uint16_t>(join(0, bits));
  *unit = static_cast<Type>(*unit | static_cast<Type>(top) << (8 * W - 16));
}

template <int W>
__device__ __forceinline__ void set_plane0(typename UnitOf<W>::Type *unit, uint32_t value) {
  typedef typename UnitOf<W>::Type Type;
  if (W == 1) {
    *unit = static_cast<Type>(value);
    return;
  }
  constexpr int kAt = W == 1 ? 0 : 8 * W - 9;
  *unit = static_cast<Type>((*unit & ~(static_cast<Type>(0xff) << kAt)) | static_cast<Type>(value) << kAt);
}

template <int W>
__device__ __forceinline__ void set_head(typename UnitOf<W>::Type *unit, uint32_t head) {
  typedef typename UnitOf<W>::Type Type;
  constexpr int kAt = 8 * W - 11;
  *unit = static_cast<Type>((*unit & ~(static_cast<Type>(0x3ff) << kAt)) | static_cast<Type>(head) << kAt);
}

}  // namespace nz

#endif
