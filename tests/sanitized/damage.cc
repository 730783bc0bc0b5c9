// Encodes small tensors of every layout, level and kind, and decodes what damage leaves of them. Every answer
// is NZ_OK or a status of damaged data; with checksums NZ_OK means the original bytes. All buffers end where
// their bytes end.
#include <algorithm>
#include <utility>

#include "tensor.h"

namespace {

// Damaged copies of one tensor, decoded many at a time: a call's scratch memory costs more than a small
// chunk.
class Trials {
 public:
  explicit Trials(const Encoded &tensor) : original_(tensor.original), tensor_(tensor) {
    tensor_.original.clear();
  }
  ~Trials() { run(); }

  void add(Encoded damaged) {
    damaged_.push_back(std::move(damaged));
    if (damaged_.size() == 256) run();
  }

  void add_chunks(Bytes chunks) {
    Encoded damaged = tensor_;
    damaged.chunks = std::move(chunks);
    add(std::move(damaged));
  }

  void add_table(Bytes table) {
    Encoded damaged = tensor_;
    damaged.table = std::move(table);
    add(std::move(damaged));
  }

 private:
  void run() {
    std::vector<Exact> buffers;
    buffers.reserve(3 * damaged_.size());
    std::vector<nz_decode_job> jobs;
    for (const Encoded &damaged : damaged_) {
      Exact &src = buffers.emplace_back(damaged.chunks), &table = buffers.emplace_back(damaged.table);
      Exact &dst = buffers.emplace_back(damaged.units * kWidths[damaged.layout]);
      jobs.push_back(decode_job(damaged, src, table, &dst));
      jobs.back().verify = jobs.size() % 2;
    }
    nz_decode(jobs.data(), jobs.size(), 1);
    for (size_t j = 0; j < jobs.size(); j++) {
      const nz_decode_job &job = jobs[j];
      REQUIRE(job.status == NZ_OK || job.status == NZ_CORRUPT || job.status == NZ_TRUNCATED);
      if (job.status == NZ_OK && job.verify) REQUIRE(buffers[3 * j + 2].equals(original_));
    }
    damaged_.clear();
  }

  const Bytes &original_;
  Encoded tensor_;  // what can be damaged of it
  std::vector<Encoded> damaged_;
};

Bytes flipped(Bytes bytes, size_t bit) {
  bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  return bytes;
}

void flip_bits(const Encoded &tensor, size_t stride) {
  Trials trials(tensor);
  for (size_t bit = 0; bit < 8 * tensor.chunks.size(); bit += stride)
    trials.add_chunks(flipped(tensor.chunks, bit));
  for (size_t bit = 0; bit < 8 * tensor.table.size(); bit += stride)
    trials.add_table(flipped(tensor.table, bit));
}

// Cuts chunks and table, once so that the index says so too, and once behind its back.
void truncate(const Encoded &tensor, size_t stride) {
  Trials trials(tensor);
  for (size_t length = 0; length < tensor.chunks.size(); length += stride) {
    Encoded damaged = tensor;
    damaged.chunks.resize(length);
    trials.add(damaged);
    size_t left = length;
    for (size_t c = 0; c < damaged.index.size(); c += 2) {
      damaged.index[c] = static_cast<uint32_t>(std::min<size_t>(damaged.index[c], left));
      left -= damaged.index[c];
    }
    trials.add(std::move(damaged));
  }
  for (size_t length = 0; length < tensor.table.size(); length += stride) {
    Bytes table = tensor.table;
    table.resize(length);
    trials.add_table(std::move(table));
  }
}

// Wrong lengths: chunks that end elsewhere, more or fewer units, another layout, chunk size or table.
void lie(const Encoded &tensor) {
  Trials trials(tensor);
  Random random(tensor.units);
  for (int trial = 0; trial < 200; trial++) {
    Encoded damaged = tensor;
    const size_t chunk = random.below(static_cast<uint32_t>(damaged.index.size() / 2));
    const uint32_t by = 1 + random.below(8);
    switch (trial % 5) {
      case 0:  // the chunk is longer, by bytes that are there
        damaged.index[2 * chunk] += by;
        damaged.chunks.resize(damaged.chunks.size() + by,
                              static_cast<uint8_t>(random.below(2) * random.next()));
        break;
      case 1:  // a boundary between chunks moves
        damaged.index[2 * chunk] += by;
        damaged.index[(2 * chunk + 2) % damaged.index.size()] -= by;
        break;
      case 2:
        damaged.units +=
            random.below(2) ? random.below(200) : -std::min<uint64_t>(tensor.units, random.below(200));
        break;
      case 3: {
        do damaged.layout = 1 + static_cast<int32_t>(random.below(kLayouts));
        while (damaged.layout == tensor.layout);
        break;
      }
      case 4:
        damaged.chunk_log2 = 10 + static_cast<int32_t>(random.below(7));
        break;
    }
    damaged.index.resize(2 * chunk_count(damaged.units, damaged.chunk_log2), 0);
    // Where the library looks at the lengths at all, they add up.
    size_t sum = 0;
    for (size_t c = 0; c < damaged.index.size(); c += 2) sum += damaged.index[c];
    if (sum <= (1 << 20)) damaged.chunks.resize(sum);
    trials.add(std::move(damaged));
  }
}

void scatter(const Encoded &tensor, int count) {
  Trials trials(tensor);
  Random random(count);
  const uint32_t size = static_cast<uint32_t>(tensor.chunks.size());
  for (int trial = 0; trial < count; trial++) {
    Bytes chunks = tensor.chunks;
    for (uint32_t n = 1 + random.below(4); n-- > 0;) {
      const uint32_t at = random.below(size), from = random.below(size);
      if (random.below(2))
        chunks[random.below(2) ? at : at % 64] = static_cast<uint8_t>(random.next());
      else
        std::memmove(chunks.data() + at, tensor.chunks.data() + from,
                     std::min(16u, size - std::max(at, from)));
    }
    trials.add_chunks(std::move(chunks));
  }
}

void damage(const Encoded &tensor, size_t stride) {
  if (tensor.chunks.empty()) return;
  flip_bits(tensor, stride);
  truncate(tensor, stride);
  lie(tensor);
  scatter(tensor, 100);
}

void undamaged(const Encoded &tensor) {
  const Exact src(tensor.chunks), table(tensor.table);
  Exact dst(tensor.original.size());
  nz_decode_job job = decode_job(tensor, src, table, &dst);
  REQUIRE(nz_decode(&job, 1, 1) == NZ_OK);
  REQUIRE(dst.equals(tensor.original));
}

// Too small a destination is refused, whatever the capacity, and never exceeded.
void little_room(const Encoded &tensor, size_t stride) {
  const Exact src(tensor.original), table(tensor.table);
  for (size_t capacity = 0; capacity < tensor.chunks.size(); capacity += stride) {
    Exact dst(capacity);
    std::vector<uint32_t> index(tensor.index.size());
    nz_encode_job job = encode_job(tensor, src, table, &dst, &index);
    REQUIRE(nz_encode(&job, 1, 1) == NZ_ARGUMENT);
  }
}

// Streams of a full chunk without their words: the loops, which check nothing, would run on into what follows
// and beyond its end, if nobody counted. What follows is long enough not to be copied, and shorter than what
// was cut.
void thirst(bool local) {
  constexpr size_t kFull = 65536;
  Random random(local);
  Bytes original(2 * (kFull + 9000));
  for (size_t i = 0; i < original.size(); i += 2) {
    const uint32_t exponent = 120 + random.below(4);
    original[i] = static_cast<uint8_t>(exponent << 7 | (local ? random.below(16) : random.below(128)));
    original[i + 1] = static_cast<uint8_t>((local ? 0 : random.below(2)) << 7 | exponent >> 1);
  }
  Encoded tensor = encode(1, NZ_LEVEL_DEFAULT, 16, original);
  undamaged(tensor);
  // Spec §4: two records; then plane 1, less its payload if it is raw, and plane 0's stream; or plane 1's
  // table of 16 symbols and its stream.
  const size_t plane = local ? 1 : 0, words_at = 16 + (local ? 36 + 2 * 16 : kFull - 64) + 128;
  uint8_t *record = tensor.chunks.data() + 8 * plane;
  REQUIRE(record[0] == (local ? 4 : 3) && tensor.chunks[8] == (local ? 4 : 0));
  uint32_t words;
  std::memcpy(&words, record + 4, 4);
  REQUIRE(words * 2 > tensor.index[2] && tensor.index[2] > 8400 / (local ? 2 : 1));
  std::memset(record + 4, 0, 4);
  const size_t cut = (2 * size_t{words} + 3) / 4 * 4;  // with the padding behind them
  const auto at = tensor.chunks.begin() + words_at;
  tensor.chunks.erase(at, at + cut);
  tensor.index[0] -= static_cast<uint32_t>(cut);
  const Exact src(tensor.chunks), table(tensor.table);
  Exact dst(original.size());
  nz_decode_job job = decode_job(tensor, src, table, &dst);
  REQUIRE(nz_decode(&job, 1, 1) == NZ_CORRUPT && job.bad_chunk == 0);
}

// Every size around the lengths that the loops and modes care about.
void sizes(int32_t layout, int32_t level) {
  for (size_t around : {0, 32, 64, 128, 256, 512, 1024, 2048, 4096}) {
    for (size_t units = around < 1 ? 0 : around - 1; units < around + 2; units++) {
      for (int32_t chunk_log2 : {10, 16}) {
        const Bytes original = make_tensor(layout, static_cast<Kind>(units % 5), units, units);
        undamaged(encode(layout, level, chunk_log2, original));
      }
    }
  }
}

}  // namespace

int main() {
  for (int32_t isa = 0; isa < NZ_ISA_COUNT; isa++) {
    if (nz_isa_select(isa) != NZ_OK) continue;
    for (int32_t layout = 1; layout <= kLayouts; layout++) {
      for (int32_t level : {NZ_LEVEL_DEFAULT, NZ_LEVEL_MAX}) {
        sizes(layout, level);
        for (int kind = 0; kind < static_cast<int>(Kind::kCount); kind++) {
          for (size_t units : {300, 2500}) {
            const Bytes original = make_tensor(layout, static_cast<Kind>(kind), units, units + 7 * kind);
            const Encoded tensor = encode(layout, level, 10, original);
            undamaged(tensor);
            // Bits of raw planes tell little, and wide units have many. The scalar loops share all checks.
            const size_t stride = units == 300 ? (layout == 4 ? 9 : 3) : 301;
            damage(tensor, isa == NZ_SCALAR ? 5 * stride : stride);
            if (units == 300) little_room(tensor, 97);
          }
        }
      }
    }
    thirst(false);
    thirst(true);
    std::printf("%s\n", nz_isa_name(isa));
  }
  return 0;
}
