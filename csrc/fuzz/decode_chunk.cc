// Decodes the chunks of a damaged frame (spec §4). The input is a frame, so that formats/vectors/good is the
// corpus; its checksums are not looked at, and its lengths only as far as the caller of nz_decode answers for
// them. All instruction sets must answer alike.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "neuzip.h"

namespace {

constexpr uint64_t kMaxUnits = 1 << 14;  // decoded of one input, so that inputs are tried quickly

uint64_t load(const uint8_t *bytes, int size) {
  uint64_t value = 0;
  for (int i = size; i-- > 0;) value = value << 8 | bytes[i];
  return value;
}

// The layout of a dtype code, as formats/floats.toml has them.
int32_t layout_of(uint8_t code) {
  if (code == 10) return 2;
  if (code == 11) return 1;
  if (code == 12 || code == 22) return 3;
  if (code == 13 || code == 23) return 4;
  return 5;
}

// A copy that ends where its bytes end, so that the sanitizer sees a read beyond them.
std::unique_ptr<uint8_t[]> copy(const uint8_t *bytes, size_t size) {
  std::unique_ptr<uint8_t[]> exact(new uint8_t[size]);
  std::copy_n(bytes, size, exact.get());
  return exact;
}

std::vector<uint8_t> decode(nz_decode_job *job, int32_t isa, uint64_t width) {
  std::vector<uint8_t> dst(job->units * width);
  job->dst = dst.data();
  if (nz_isa_select(isa) != NZ_OK) std::abort();
  nz_decode(job, 1, 1);
  return dst;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *frame, size_t size) {
  if (size < 40) return 0;
  nz_decode_job job = {};
  job.layout = layout_of(frame[5]);
  job.chunk_log2 = 10 + (frame[7] + 4) % 7;  // 10 … 16 as they are
  const size_t table_at = 40 + 8 * size_t{frame[10]};
  job.table_bytes = static_cast<uint32_t>(load(frame + 12, 4));
  if (table_at + job.table_bytes > size) return 0;
  const uint64_t width = job.layout == 5 ? 1 : job.layout < 3 ? 2 : job.layout == 3 ? 4 : 8;
  job.units = std::min(load(frame + 16, 8) / width, kMaxUnits);
  const uint64_t chunks = (job.units + (uint64_t{1} << job.chunk_log2) - 1) >> job.chunk_log2;
  const size_t index_at = table_at + job.table_bytes;
  if (index_at + 8 * chunks > size) return 0;

  const auto table = copy(frame + table_at, job.table_bytes);
  std::vector<uint32_t> index(2 * chunks);
  if (chunks) std::memcpy(index.data(), frame + index_at, 8 * chunks);
  size_t left = size - (index_at + 8 * chunks);
  for (size_t c = 0; c < chunks; c++) {
    index[2 * c] = static_cast<uint32_t>(std::min<size_t>(index[2 * c], left));
    left -= index[2 * c];
    job.size += index[2 * c];
  }
  const auto src = copy(frame + index_at + 8 * chunks, job.size);
  job.src = src.get();
  job.index = index.data();
  job.table = table.get();
  const std::vector<uint8_t> expected = decode(&job, NZ_SCALAR, width);
  const nz_decode_job first = job;
  for (int32_t isa = NZ_SCALAR + 1; isa < NZ_ISA_COUNT; isa++) {
    if (!nz_isa_available(isa)) continue;
    const std::vector<uint8_t> decoded = decode(&job, isa, width);
    if (job.status != first.status || job.bad_chunk != first.bad_chunk) std::abort();
    if (job.status == NZ_OK && decoded != expected) std::abort();
  }
  return 0;
}
