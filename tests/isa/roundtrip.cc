// Encodes generated tensors through the C interface, decodes them again, and prints a checksum of every
// encoding: the output must be the same for all instruction sets and machines. Usage: roundtrip NAME, of an
// instruction set. Exits with 77 if this processor, or this build, does not run it.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "neuzip.h"

namespace {

using Random = std::mt19937_64;
using Bytes = std::vector<uint8_t>;

enum Layout { kBf16 = 1, kFp16 = 2, kFp32 = 3, kFp64 = 4, kByte = 5 };  // formats/floats.toml
constexpr int kWidth[] = {0, 2, 2, 4, 8, 1};

// Nearly normal: a sum of uniform integers, so that all machines agree on every bit.
double normal(Random &random) {
  int64_t sum = 0;
  for (int i = 0; i < 8; i++) sum += static_cast<int64_t>(random() >> 34) - (int64_t{1} << 29);
  return static_cast<double>(sum) * 0x1p-30;
}

template <typename Unit>
void append(Bytes &bytes, Unit unit) {
  const auto *p = reinterpret_cast<const uint8_t *>(&unit);
  bytes.insert(bytes.end(), p, p + sizeof unit);
}

void append_float(Bytes &bytes, int layout, double value) {
  const float single = static_cast<float>(value);
  uint32_t u;
  std::memcpy(&u, &single, sizeof u);
  if (layout == kBf16) append(bytes, static_cast<uint16_t>(u >> 16));
  if (layout == kFp16)  // in the range of normal numbers, or 0
    append(bytes, static_cast<uint16_t>((u >> 16 & 0x8000) |
                                        ((u >> 23 & 255) > 112 ? ((u >> 13) - (112 << 10)) & 0x7fff : 0)));
  if (layout == kFp32) append(bytes, u);
  if (layout == kFp64) append(bytes, value);
  if (layout == kByte)
    append(bytes, static_cast<uint8_t>((u >> 24 & 0x80) | (((u >> 20) - (120 << 3)) & 0x7f)));
}

enum Kind { kWeights, kZeros, kNoise, kSparse, kRounded, kWide, kSections, kDrift, kKinds };
const char *const kKindNames[] = {"weights", "zeros", "noise",    "sparse",
                                  "rounded", "wide",  "sections", "drift"};

Bytes generate(Random &random, int layout, Kind kind, size_t units) {
  Bytes bytes;
  for (size_t i = 0; i < units; i++) {
    const Kind k = kind == kSections ? static_cast<Kind>(i >> 11 & 3) : kind;  // chunks unlike each other
    double v = normal(random) * 0.05;
    if (kind == kDrift) v *= static_cast<double>(1u << (i >> 12) % 6);  // so that one table does not suit all
    uint32_t bits;
    switch (k) {
      case kZeros:
        append_float(bytes, layout, 0);
        break;
      case kNoise:
        for (int b = 0; b < kWidth[layout]; b++) bytes.push_back(static_cast<uint8_t>(random()));
        break;
      case kSparse:
        append_float(bytes, layout, random() % 10 ? 0 : v);
        break;
      case kRounded: {  // to bf16, whatever the layout
        float single = static_cast<float>(v);
        std::memcpy(&bits, &single, sizeof bits);
        bits &= 0xffff0000;
        std::memcpy(&single, &bits, sizeof bits);
        append_float(bytes, layout, single);
        break;
      }
      case kWide:  // more exponents than ranks
        bits = static_cast<uint32_t>(64 + random() % 100) << 23;
        float scale;
        std::memcpy(&scale, &bits, sizeof bits);
        append_float(bytes, layout, v * static_cast<double>(scale));
        break;
      default:
        append_float(bytes, layout, v);
    }
  }
  return bytes;
}

struct Encoded {
  Bytes table, chunks;
  std::vector<uint32_t> index;
};

// In one run, or in two that meet at chunk `cut`.
bool encode(const Bytes &original, int layout, int level, int chunk_log2, uint64_t cut, Encoded *encoded) {
  const size_t width = static_cast<size_t>(kWidth[layout]);
  const uint64_t units = original.size() / width;
  const uint64_t chunks = (units + (uint64_t{1} << chunk_log2) - 1) >> chunk_log2;
  encoded->table.resize(NZ_TABLE_CAPACITY);
  const int32_t size = nz_plan(layout, level, chunk_log2, original.data(), units, encoded->table.data());
  if (size < 0) return false;
  encoded->table.resize(static_cast<size_t>(size));
  encoded->index.assign(2 * chunks, 0);
  nz_encode_job jobs[2] = {};
  Bytes runs[2];
  for (int run = 0; run < 2; run++) {
    nz_encode_job &job = jobs[run];
    const uint64_t first = run ? std::min(cut, chunks) : 0, end = run ? chunks : std::min(cut, chunks);
    runs[run].resize((end - first) * nz_chunk_bound(layout, chunk_log2));
    job.src = original.data() + (first << chunk_log2) * width;
    job.units = std::min(units, end << chunk_log2) - std::min(units, first << chunk_log2);
    job.first_chunk = first;
    job.table = encoded->table.data(), job.table_bytes = static_cast<uint32_t>(size);
    job.layout = layout, job.chunk_log2 = chunk_log2;
    job.dst = runs[run].data(), job.capacity = runs[run].size();
    job.index = encoded->index.data() + 2 * first;
  }
  if (nz_encode(jobs, 2, cut ? 2 : 1) != NZ_OK) return false;
  for (int run = 0; run < 2; run++)
    encoded->chunks.insert(encoded->chunks.end(), runs[run].begin(),
                           runs[run].begin() + static_cast<ptrdiff_t>(jobs[run].written));
  encoded->chunks.shrink_to_fit();  // so that a sanitizer sees what is read behind them
  return true;
}

bool decode(const Encoded &encoded, int layout, int chunk_log2, Bytes *original) {
  nz_decode_job job = {};
  job.src = encoded.chunks.data(), job.size = encoded.chunks.size();
  job.index = encoded.index.data();
  job.units = original->size() / static_cast<size_t>(kWidth[layout]);
  job.table = encoded.table.data(), job.table_bytes = static_cast<uint32_t>(encoded.table.size());
  job.layout = layout, job.chunk_log2 = chunk_log2, job.verify = 1;
  job.dst = original->data();
  return nz_decode(&job, 1, 2) == NZ_OK;
}

bool turn(const Bytes &original, int layout, Kind kind, int level, int chunk_log2) {
  Encoded encoded, in_two;
  Bytes decoded(original.size(), 0xee);
  if (!encode(original, layout, level, chunk_log2, 0, &encoded) ||
      !encode(original, layout, level, chunk_log2, 3, &in_two) || encoded.chunks != in_two.chunks ||
      encoded.index != in_two.index || !decode(encoded, layout, chunk_log2, &decoded) ||
      decoded != original) {
    std::fprintf(stderr, "layout %d, %s, level %d, 2^%d units a chunk: encoding or decoding failed\n", layout,
                 kKindNames[kind], level, chunk_log2);
    return false;
  }
  std::printf("layout %d %s level %d log2 %d: %zu -> %zu", layout, kKindNames[kind], level, chunk_log2,
              original.size(), encoded.chunks.size());
  const uint64_t sums[] = {nz_checksum64(encoded.table.data(), encoded.table.size()),
                           nz_checksum64(encoded.index.data(), 4 * encoded.index.size()),
                           nz_checksum64(encoded.chunks.data(), encoded.chunks.size())};
  for (uint64_t sum : sums) std::printf(" %016llx", static_cast<unsigned long long>(sum));
  std::printf("\n");
  return true;
}

}  // namespace

int main(int argc, char **argv) {
  int32_t isa = NZ_ISA_COUNT;
  for (int32_t i = 0; i < NZ_ISA_COUNT; i++)
    if (argc == 2 && !std::strcmp(argv[1], nz_isa_name(i))) isa = i;
  if (isa == NZ_ISA_COUNT) {
    std::fprintf(stderr, "usage: roundtrip NAME, of an instruction set\n");
    return 2;
  }
  if (nz_isa_select(isa) != NZ_OK) return 77;
  Random random(1602);
  bool ok = true;
  for (int layout = kBf16; layout <= kByte; layout++)
    for (int kind = 0; kind < kKinds; kind++) {
      const size_t units = (kind == kDrift ? 80000 : 20000) + random() % 64;
      const Bytes original = generate(random, layout, static_cast<Kind>(kind), units);
      for (int level : {NZ_LEVEL_DEFAULT, NZ_LEVEL_MAX})
        for (int chunk_log2 : {10, 13, 16})
          ok &= turn(original, layout, static_cast<Kind>(kind), level, chunk_log2);
    }
  return !ok;
}
