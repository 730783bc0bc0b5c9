// A stream (§4) being decoded, a lane's state in each thread.
#ifndef NEUZIP_CUDA_STREAM_H
#define NEUZIP_CUDA_STREAM_H

#include "lookup.cuh"

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
  __device__ __forceinline__ explicit Stream(const StreamView &view)
      : state_(load_u32(view.states + 4 * lane_id())),
        before_words_(reinterpret_cast<const uint16_t *>(view.states) + 2 * kWarp - 1),
        next_(1),
        last_(view.words),
        lower_((1u << lane_id()) - 1) {}

  // The next symbol of an active lane. All lanes call it together, at most once for every unit of the chunk.
  template <typename Table>
  __device__ __forceinline__ uint32_t take(const Table &table, bool active = true) {
    uint32_t x = state_;
    const uint32_t symbol = table.take(&x);
    if (active) state_ = x;
    const bool full = state_ >= kLow;
    const uint32_t all = ~__ballot_sync(kAll, full);
    // A corrupt stream takes more words than it has; those read as its last.
    if (!full) state_ = state_ << 16 | __ldg(before_words_ + min(next_ + __popc(all & lower_), last_));
    next_ += __popc(all);
    return symbol;
  }

  __device__ __forceinline__ bool begins_well() const { return __all_sync(kAll, state_ >= kLow); }
  // Whether the stream has ended where it should (§4.1).
  __device__ __forceinline__ bool ends_well(bool payload) const {
    return __all_sync(kAll, (payload ? state_ >> 16 : state_ - kLow + 1) == 1) && next_ == last_ + 1;
  }
  __device__ __forceinline__ uint32_t payload() const { return state_ & 0xffff; }

 private:
  uint32_t state_;
  const uint16_t *before_words_;  // the word before the first, so that no index lies outside the chunk
  uint32_t next_;
  uint32_t last_;
  uint32_t lower_;
};

}  // namespace nz

#endif
