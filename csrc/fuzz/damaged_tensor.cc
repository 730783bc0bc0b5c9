// A tensor with a few damaged bytes: every instruction set gives the same answer as the scalar loops, and
// with checksums no answer but the original. Where mutations of whole frames (decode_chunk) seldom get past
// the lengths, these are in the middle of streams. The first twelve bytes of the input choose layout, level,
// chunk size, length and distribution; each following four are an edit: where (three bytes) and what.
#include <algorithm>

#include "tensor.h"

namespace {

constexpr uint64_t kMaxUnits = 5000;

// A linear congruential generator (Knuth, MMIX): the same tensor for the same input everywhere.
struct Random {
  uint64_t state;
  uint32_t next() {
    return static_cast<uint32_t>((state = state * 6364136223846793005 + 1442695040888963407) >> 33);
  }
};

// Units whose top bytes have about `spread` bits of entropy, as exponents do, and whose others have `noise`.
std::vector<uint8_t> tensor(uint64_t units, uint64_t width, const uint8_t *shape) {
  Random random = {static_cast<uint64_t>(shape[0]) << 8 | shape[1]};
  const uint32_t spread = 1 + shape[2] % 24, rare = 1 + shape[3];
  const uint8_t center = shape[4], noise = shape[5];
  std::vector<uint8_t> bytes(units * width);
  for (uint64_t i = 0; i < bytes.size(); i++) {
    const bool top = i % width == width - 1;
    // The lower of two draws: small distances from the center are the most frequent.
    const uint32_t distance = std::min(random.next() % spread, random.next() % spread);
    const bool odd = random.next() % 256 >= rare;
    bytes[i] = static_cast<uint8_t>(top && !odd ? center - distance : random.next() & (top ? 255 : noise));
  }
  bytes.shrink_to_fit();
  return bytes;
}

std::vector<uint8_t> decode(nz_decode_job *job, int32_t isa, int32_t verify, size_t size) {
  std::vector<uint8_t> decoded(size);
  require(nz_isa_select(isa) == NZ_OK);
  job->dst = decoded.data();
  job->verify = verify;
  nz_decode(job, 1, 1);
  return decoded;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
  constexpr size_t kFixed = 12, kEdit = 4;
  if (size < kFixed) return 0;
  nz_encode_job job = {};
  job.layout = 1 + input[0] % 5;
  job.chunk_log2 = 10 + input[0] / 5 % 3;
  const int32_t level = input[1] & 1;
  job.units = 1 + (static_cast<uint64_t>(input[2]) << 8 | input[3]) % kMaxUnits;
  const std::vector<uint8_t> original = tensor(job.units, kWidths[job.layout], input + 4);
  job.src = original.data();
  std::vector<uint8_t> table = plan(job.layout, level, job.chunk_log2, job.src, job.units);
  job.table = table.data();
  job.table_bytes = static_cast<uint32_t>(table.size());
  Encoded damaged = encode(job, NZ_SCALAR);

  for (size_t at = kFixed; at + kEdit <= size; at += kEdit) {
    const uint32_t where = input[at] | input[at + 1] << 8 | input[at + 2] << 16;
    // The table after the chunks; lengths are decode_chunk's to damage.
    const size_t place = where % (damaged.bytes.size() + table.size());
    uint8_t *byte =
        place < damaged.bytes.size() ? &damaged.bytes[place] : &table[place - damaged.bytes.size()];
    *byte = static_cast<uint8_t>(*byte ^ input[at + 3]);
  }
  nz_decode_job back = {};
  back.src = damaged.bytes.data();
  back.size = damaged.bytes.size();
  back.index = damaged.index.data();
  back.units = job.units;
  back.table = table.data();
  back.table_bytes = job.table_bytes;
  back.layout = job.layout;
  back.chunk_log2 = job.chunk_log2;
  for (int32_t verify = 0; verify < 2; verify++) {
    const std::vector<uint8_t> expected = decode(&back, NZ_SCALAR, verify, original.size());
    const nz_decode_job scalar = back;
    require(!verify || scalar.status != NZ_OK || expected == original);
    for (int32_t isa = NZ_SCALAR + 1; isa < NZ_ISA_COUNT; isa++) {
      if (!nz_isa_available(isa)) continue;
      const std::vector<uint8_t> decoded = decode(&back, isa, verify, original.size());
      require(back.status == scalar.status && back.bad_chunk == scalar.bad_chunk);
      require(back.status != NZ_OK || decoded == expected);
    }
  }
  return 0;
}
