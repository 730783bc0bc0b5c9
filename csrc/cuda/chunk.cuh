// Bounds-checked reading of a chunk (§4), by all lanes of a warp alike. No length in it is trusted beyond its
// end.
#ifndef NEUZIP_CUDA_CHUNK_H
#define NEUZIP_CUDA_CHUNK_H

#include "stream.cuh"

namespace nz {

enum Mode : uint32_t { kRaw = 0, kConstant = 1, kRank = 2, kByte = 3, kLocal = 4, kJoint = 5, kSix = 6 };
enum Kind : uint32_t { kNoTable = 0, kRankTable = 1, kByteTable = 2, kJointTable = 3 };

constexpr uint32_t kRecordBytes = 8;
constexpr uint32_t kStateBytes = 4 * kWarp;
constexpr uint32_t kPayloadBytes = 2 * kWarp;
constexpr uint32_t kEntryHeader = 8;  // of a table in the blob (§5)

__device__ __forceinline__ uint32_t six_bytes(uint32_t units) { return (units + 127) / 128 * 96; }

__device__ __forceinline__ bool has_stream(uint32_t mode) { return mode >= kRank && mode <= kJoint; }

struct Record {
  uint32_t mode, param, patches, words;

  __device__ __forceinline__ Record(const uint8_t *chunk, int plane) {
    const uint32_t first = load_u32(chunk + kRecordBytes * plane);
    mode = first & 0xff;
    param = first >> 8 & 0xff;
    patches = first >> 16;
    words = load_u32(chunk + kRecordBytes * plane + 4);
  }

  __device__ __forceinline__ bool allowed(int plane, uint32_t kind, uint32_t mode0, uint32_t units) const {
    if (mode > kSix || (param && mode != kConstant)) return false;
    if ((mode == kSix) != (plane == 1 && mode0 == kJoint)) return false;
    if (mode == kRank && (plane || kind != kRankTable)) return false;
    if (mode == kByte && (plane || kind != kByteTable)) return false;
    if (mode == kJoint && (plane || kind != kJointTable)) return false;
    // A symbol takes at most one word (§4.1).
    return has_stream(mode) ? words <= units && patches <= units : !words && !patches;
  }

  __device__ __forceinline__ uint32_t patch_bytes() const { return mode == kJoint ? 4 : 3; }
};

// The unread rest of a chunk.
class Cursor {
 public:
  __device__ __forceinline__ Cursor(const uint8_t *chunk, uint32_t at, uint32_t size)
      : chunk_(chunk), at_(at), size_(size) {}

  // The next n bytes, or null if there are fewer.
  __device__ __forceinline__ const uint8_t *take(uint32_t n) {
    if (n > left()) return nullptr;
    const uint8_t *const p = chunk_ + at_;
    at_ += n;
    return p;
  }
  // Skips zero bytes up to a multiple of 4; false if they are not zero or not there.
  __device__ __forceinline__ bool align() {
#pragma unroll 1
    while (at_ % 4) {
      if (at_ == size_ || __ldg(chunk_ + at_)) return false;
      at_++;
    }
    return true;
  }
  __device__ __forceinline__ const uint8_t *at() const { return chunk_ + at_; }
  __device__ __forceinline__ uint32_t left() const { return size_ - at_; }

 private:
  const uint8_t *chunk_;
  uint32_t at_, size_;
};

// Whether the patches are in order, inside the chunk and possible (§4.4).
__device__ __forceinline__ bool patches_ascend(const StreamView &stream, uint32_t patch_bytes,
                                               uint32_t units) {
  bool good = true;
#pragma unroll 1
  for (uint32_t i = lane_id(); i < stream.patch_count; i += kWarp) {
    const uint8_t *const patch = stream.patches + patch_bytes * i;
    const uint32_t position = load_bytes2(patch);
    good = good && position < units && (i == 0 || load_bytes2(patch - patch_bytes) < position);
    if (patch_bytes == 4) good = good && load_bytes2(patch + 2) < 1024;
  }
  return __all_sync(kAll, good);
}

__device__ __forceinline__ bool take_stream(const Record &record, uint32_t units, Cursor *cursor,
                                            StreamView *stream) {
  const uint8_t *const states = cursor->take(kStateBytes), *const words = cursor->take(2 * record.words);
  const uint8_t *const patches = cursor->take(record.patch_bytes() * record.patches);
  *stream = {states, record.words, patches, record.patches};
  return states && words && patches && patches_ascend(*stream, record.patch_bytes(), units);
}

// The table of mode local and its padding; false if it breaks a rule.
__device__ __forceinline__ bool take_local_table(Cursor *cursor, Lookup *lookup) {
  const uint32_t size = byte_table_size(cursor->at(), cursor->left());
  if (!size) return false;
  const uint8_t *const table = cursor->take(size);
  return cursor->align() && load_byte_table(table, lookup);
}

}  // namespace nz

#endif
