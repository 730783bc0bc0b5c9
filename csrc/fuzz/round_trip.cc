// Any bytes come back, in at most nz_chunk_bound a chunk, and every instruction set encodes them alike. The
// first two bytes of the input choose layout, level and chunk size; the rest, repeated with slight changes to
// make enough, are the tensor.
#include <algorithm>

#include "tensor.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
  if (size < 3) return 0;
  nz_encode_job job = {};
  job.layout = 1 + input[0] % 5;
  job.chunk_log2 = 10 + input[0] / 5 % 3;
  const int32_t level = input[0] >> 7;
  const uint64_t width = kWidths[job.layout];
  const size_t repeat = 1 + input[1] % 64;
  const uint8_t change = input[1] >> 6;
  input += 2, size -= 2;
  std::vector<uint8_t> original(std::min<size_t>(size * repeat, 1 << 14) / width * width);
  for (size_t i = 0; i < original.size(); i++)
    original[i] = static_cast<uint8_t>(input[i % size] + change * (i / size));
  original.shrink_to_fit();
  job.src = original.data();
  job.units = original.size() / width;
  const std::vector<uint8_t> table = plan(job.layout, level, job.chunk_log2, job.src, job.units);
  job.table = table.data();
  job.table_bytes = static_cast<uint32_t>(table.size());

  const Encoded scalar = encode(job, NZ_SCALAR);
  for (int32_t isa = 0; isa < NZ_ISA_COUNT; isa++) {
    if (!nz_isa_available(isa)) continue;
    const Encoded encoded = encode(job, isa);
    require(encoded.bytes == scalar.bytes && encoded.index == scalar.index);
    std::vector<uint8_t> decoded(original.size());
    nz_decode_job back = {};
    back.src = encoded.bytes.data();
    back.size = encoded.bytes.size();
    back.index = encoded.index.data();
    back.units = job.units;
    back.table = job.table;
    back.table_bytes = job.table_bytes;
    back.layout = job.layout;
    back.chunk_log2 = job.chunk_log2;
    back.verify = 1;
    back.dst = decoded.data();
    require(nz_decode(&back, 1, 1) == NZ_OK && decoded == original);
  }
  return 0;
}
