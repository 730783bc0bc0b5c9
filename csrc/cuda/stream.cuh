// A stream (§4) being decoded, a lane's state in each thread.
#ifndef NEUZIP_CUDA_STREAM_H
#define NEUZIP_CUDA_STREAM_H

#include "lookup.cuh"
#include "words.cuh"

namespace nz {

// A stream as it lies in a chunk, its lengths checked.
struct StreamView {
  const uint8_t *states;  // the words follow
  uint32_t words;
  const uint8_t *patches;
  uint32_t patch_count;
};

class Stream {
 public:
  __device__ __forceinline__ Stream(const StreamView &view, WordRing *ring)
      : state_(load_u32(view.states + 4 * lane_id())),
        words_(view.states + 4 * kWarp, view.words, ring),
        lower_((1u << lane_id()) - 1) {}

  // All lanes, before each kSteps symbols.
  __device__ __forceinline__ void fetch() { words_.fetch(); }

  // The next symbol of an active lane. All lanes call it together, at most once for every unit of the chunk.
  template <typename Table>
  __device__ __forceinline__ uint32_t take(const Table &table, bool active = true) {
    uint32_t x = state_;
    const uint32_t symbol = table.take(&x);
    if (active) state_ = x;
    const bool lacks = state_ < kLow;
    const uint32_t all = __ballot_sync(kAll, lacks);
    const uint32_t word = words_.peek(__popc(all & lower_));
    if (lacks) state_ = state_ << 16 | word;
    words_.skip(__popc(all));
    return symbol;
  }

  __device__ __forceinline__ bool begins_well() const { return __all_sync(kAll, state_ >= kLow); }
  // Whether the stream has ended where it should (§4.1).
  __device__ __forceinline__ bool ends_well(bool payload) const {
    return __all_sync(kAll, (payload ? state_ >> 16 : state_ - kLow + 1) == 1) && words_.all_taken();
  }
  __device__ __forceinline__ uint32_t payload() const { return state_ & 0xffff; }

 private:
  uint32_t state_;
  Words words_;
  uint32_t lower_;
};

}  // namespace nz

#endif
