// Byte histograms. Four tables side by side, so that equal neighbours do not wait for each other's increment.
#ifndef NEUZIP_HISTOGRAM_H
#define NEUZIP_HISTOGRAM_H

#include <cstddef>
#include <cstdint>

#include "table.h"

namespace nz {

// Counts bytes that come in pieces.
class ByteCounter {
 public:
  void add(const uint8_t *bytes, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
      part_[0][bytes[i]]++;
      part_[1][bytes[i + 1]]++;
      part_[2][bytes[i + 2]]++;
      part_[3][bytes[i + 3]]++;
    }
    for (; i < n; i++) part_[0][bytes[i]]++;
  }

  // What was counted is added to a histogram.
  void add_to(Histogram &histogram) const {
    for (int s = 0; s < 256; s++) histogram[s] += part_[0][s] + part_[1][s] + part_[2][s] + part_[3][s];
  }

 private:
  uint32_t part_[4][256] = {};
};

// Adds every byte of each block of `block` bytes, a block every `stride` bytes.
inline void add_histogram(const uint8_t *bytes, size_t n, size_t block, size_t stride, Histogram &histogram) {
  ByteCounter counter;
  for (size_t at = 0; at < n; at += stride) counter.add(bytes + at, at + block < n ? block : n - at);
  counter.add_to(histogram);
}

inline void full_histogram(const uint8_t *bytes, size_t n, Histogram &histogram) {
  for (uint32_t &h : histogram) h = 0;
  add_histogram(bytes, n, n, n ? n : 1, histogram);
}

}  // namespace nz

#endif
