// Byte histograms. Four tables side by side, so that equal neighbours do not wait for each other's increment.
#ifndef NEUZIP_HISTOGRAM_H
#define NEUZIP_HISTOGRAM_H

#include <cstddef>
#include <cstdint>

#include "table.h"

namespace nz {

// Adds every byte of each block of `block` bytes, a block every `stride` bytes.
inline void add_histogram(const uint8_t *bytes, size_t n, size_t block, size_t stride, Histogram &histogram) {
  uint32_t part[4][256] = {};
  for (size_t at = 0; at < n; at += stride) {
    const size_t end = at + block < n ? at + block : n;
    size_t i = at;
    for (; i + 4 <= end; i += 4) {
      part[0][bytes[i]]++;
      part[1][bytes[i + 1]]++;
      part[2][bytes[i + 2]]++;
      part[3][bytes[i + 3]]++;
    }
    for (; i < end; i++) part[0][bytes[i]]++;
  }
  for (int s = 0; s < 256; s++) histogram[s] += part[0][s] + part[1][s] + part[2][s] + part[3][s];
}

inline void full_histogram(const uint8_t *bytes, size_t n, Histogram &histogram) {
  for (uint32_t &h : histogram) h = 0;
  add_histogram(bytes, n, n, n ? n : 1, histogram);
}

}  // namespace nz

#endif
