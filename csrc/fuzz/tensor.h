// What the harnesses share: encoding a tensor on one instruction set.
#ifndef NEUZIP_FUZZ_TENSOR_H
#define NEUZIP_FUZZ_TENSOR_H

#include <cstdlib>
#include <vector>

#include "neuzip.h"

// Bytes of a unit by layout (formats/floats.toml).
constexpr uint64_t kWidths[] = {0, 2, 2, 4, 8, 1};

inline void require(bool condition) {
  if (!condition) std::abort();
}

struct Encoded {
  std::vector<uint8_t> bytes;
  std::vector<uint32_t> index;
};

inline uint64_t chunk_count(uint64_t units, int32_t chunk_log2) {
  return (units + (uint64_t{1} << chunk_log2) - 1) >> chunk_log2;
}

// The table blob of a tensor; its memory ends where it ends.
inline std::vector<uint8_t> plan(int32_t layout, int32_t level, int32_t chunk_log2, const uint8_t *src,
                                 uint64_t units) {
  std::vector<uint8_t> table(NZ_TABLE_CAPACITY);
  const int32_t size = nz_plan(layout, level, chunk_log2, src, units, table.data());
  require(size >= 0);
  return {table.begin(), table.begin() + size};
}

inline Encoded encode(nz_encode_job job, int32_t isa) {
  require(nz_isa_select(isa) == NZ_OK);
  const uint64_t chunks = chunk_count(job.units, job.chunk_log2);
  Encoded encoded;
  encoded.bytes.resize(chunks * nz_chunk_bound(job.layout, job.chunk_log2));
  encoded.index.resize(2 * chunks);
  job.dst = encoded.bytes.data();
  job.capacity = encoded.bytes.size();
  job.index = encoded.index.data();
  require(nz_encode(&job, 1, 1) == NZ_OK);
  encoded.bytes.resize(job.written);
  encoded.bytes.shrink_to_fit();
  return encoded;
}

#endif
