// Reads a table blob (spec §5), which is the input after its first byte, and loads each table it may have.
#include <algorithm>
#include <memory>
#include <vector>

#include "neuzip.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
  if (size < 1) return 0;
  const size_t table_size = size - 1;
  const std::unique_ptr<uint8_t[]> table(new uint8_t[table_size]);
  std::copy_n(input + 1, table_size, table.get());

  // Chunks of 1024 units whose planes are constant (§4): they need no table, but all are loaded on the way.
  constexpr uint64_t kChunks = 8;
  static const uint64_t widths[] = {0, 2, 2, 4, 8, 1};
  nz_decode_job job = {};
  job.layout = 1 + input[0] % 5;
  const uint64_t width = widths[job.layout];
  std::vector<uint8_t> src(kChunks * 8 * width), dst(kChunks * 1024 * width);
  for (size_t record = 0; record < src.size(); record += 8) src[record] = 1;
  std::vector<uint32_t> index(2 * kChunks);
  for (size_t c = 0; c < kChunks; c++) index[2 * c] = static_cast<uint32_t>(8 * width);
  job.src = src.data();
  job.size = src.size();
  job.index = index.data();
  job.units = kChunks * 1024;
  job.first_chunk = input[0] / 5;
  job.table = table.get();
  job.table_bytes = static_cast<uint32_t>(table_size);
  job.chunk_log2 = 10;
  job.dst = dst.data();
  nz_decode(&job, 1, 1);
  return 0;
}
