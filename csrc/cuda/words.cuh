// The words of a stream (§4.1) on their way through shared memory: no step waits for device memory.
#ifndef NEUZIP_CUDA_WORDS_H
#define NEUZIP_CUDA_WORDS_H

#include "async.cuh"

namespace nz {

constexpr uint32_t kSteps = 8;  // that may follow one fetch
constexpr uint32_t kStepsBytes =
    14;  // that a lane takes in them, at most: seven words, since a symbol has 14 bits (§4.3)
constexpr uint32_t kBlockBytes = 16;  // that are copied at once
constexpr uint32_t kRingBlocks = 64;
constexpr uint32_t kRingBytes = kBlockBytes * kRingBlocks;

// A warp's words, as many as two fetches bring at most.
struct __align__(16) WordRing {
  uint8_t bytes[kRingBytes];
};

class Words {
 public:
  // `count` words, aligned to 2, behind at least 14 bytes of the same memory.
  __device__ __forceinline__ Words(const uint8_t *words, uint32_t count, WordRing *ring) : ring_(ring) {
    next_ = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(words)) % kBlockBytes;
    blocks_ = words - next_;
    end_ = next_ + 2 * count;
    wait_for_copies<0>();  // those of the stream before
    __syncwarp();
    request(kRingBlocks / 2);
    request(kRingBlocks);
  }

  // All lanes, before kSteps steps. What these need was requested one fetch before, or earlier.
  __device__ __forceinline__ void fetch() {
    static_assert(2 * kStepsBytes * kWarp + kBlockBytes <= kRingBytes, "two fetches fit");
    __syncwarp();  // nobody reads what is overwritten
    request(next_ / kBlockBytes + kRingBlocks);
    wait_for_copies<1>();
    __syncwarp();
  }

  // The word `ahead` of the next; 0 where a corrupt stream takes more than it has.
  __device__ __forceinline__ uint32_t peek(uint32_t ahead) const {
    return load_shared_u16(ring_, (next_ + 2 * ahead) % kRingBytes);
  }
  __device__ __forceinline__ void skip(uint32_t count) { next_ += 2 * count; }
  __device__ __forceinline__ bool all_taken() const { return next_ == end_; }

 private:
  // The blocks up to one, at most one for each lane.
  __device__ __forceinline__ void request(uint32_t until) {
    const uint32_t at = kBlockBytes * (requested_ + lane_id());
    if (at < kBlockBytes * until) {
      const int left = min(max(static_cast<int>(end_ - at), 0), static_cast<int>(kBlockBytes));
      copy16_async(ring_->bytes + at % kRingBytes, blocks_ + at, static_cast<uint32_t>(left));
    }
    requested_ = until;
    commit_copies();
  }

  WordRing *ring_;
  const uint8_t *blocks_;  // the first, aligned to 16
  uint32_t next_, end_;    // in bytes from there
  uint32_t requested_ = 0;
};

}  // namespace nz

#endif
