// Small tensors for the programs of this directory, encoded by the library, and buffers whose ends a
// sanitizer sees.
#ifndef NEUZIP_TESTS_TENSOR_H
#define NEUZIP_TESTS_TENSOR_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "neuzip.h"

#define REQUIRE(condition)                                                               \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (0)

using Bytes = std::vector<uint8_t>;

constexpr int kLayouts = 5;                                   // ids 1 … 5 of formats/floats.toml
constexpr size_t kWidths[kLayouts + 1] = {0, 2, 2, 4, 8, 1};  // bytes a unit

// Exactly `size` bytes of heap: one byte further is the sanitizer's.
class Exact {
 public:
  explicit Exact(size_t size) : size_(size), bytes_(static_cast<uint8_t *>(std::malloc(size))) {}
  explicit Exact(const Bytes &bytes) : Exact(bytes.size()) {
    if (size_) std::memcpy(bytes_, bytes.data(), size_);
  }
  Exact(Exact &&other) noexcept : size_(other.size_), bytes_(other.bytes_) { other.bytes_ = nullptr; }
  Exact(const Exact &) = delete;
  Exact &operator=(const Exact &) = delete;
  Exact &operator=(Exact &&) = delete;
  ~Exact() { std::free(bytes_); }
  uint8_t *data() const { return bytes_; }
  size_t size() const { return size_; }
  bool equals(const Bytes &other) const {
    return size_ == other.size() && (size_ == 0 || std::memcmp(bytes_, other.data(), size_) == 0);
  }

 private:
  size_t size_;
  uint8_t *bytes_;
};

// A fixed sequence: the tests try the same bytes everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }
  uint32_t below(uint32_t bound) { return next() % bound; }

 private:
  uint64_t state_;
};

enum class Kind {
  kWeights,  // exponents of a bell curve, mantissas at random: the frame's table pays
  kRare,     // the same, with exponents that have no rank or lie outside the joint window: patches
  kLocal,    // the last plane has few values: a table of its own
  kWide,     // sixty exponents: no rank table
  kNoise,    // nothing pays
  kCount
};

// A unit whose top nine bits are sign and exponent, as bf16 and fp32 have them; other layouts cut it where
// they do.
inline Bytes make_tensor(int layout, Kind kind, size_t units, uint64_t seed) {
  const size_t width = kWidths[layout];
  Random random(seed);
  Bytes bytes(units * width);
  for (size_t i = 0; i < units; i++) {
    uint8_t *unit = bytes.data() + i * width;
    for (size_t b = 0; b < width; b++) unit[b] = static_cast<uint8_t>(random.next());
    if (kind == Kind::kNoise) continue;
    uint32_t exponent = 122;
    while (exponent > 110 && random.below(2)) exponent--;
    if (kind == Kind::kRare && i % 97 == 5) exponent = random.below(256);
    if (kind == Kind::kWide) exponent = 70 + random.below(30) + random.below(30);
    if (kind == Kind::kLocal) unit[0] = static_cast<uint8_t>(random.below(3) * random.below(3));
    if (width == 1) {
      unit[0] = static_cast<uint8_t>(exponent);
    } else {
      unit[width - 1] = static_cast<uint8_t>(random.below(2) << 7 | exponent >> 1);
      if (kind != Kind::kLocal || width > 2)
        unit[width - 2] = static_cast<uint8_t>(exponent << 7 | random.below(128));
    }
  }
  return bytes;
}

struct Encoded {
  int32_t layout, level, chunk_log2;
  uint64_t units;
  Bytes original, table, chunks;
  std::vector<uint32_t> index;
};

inline uint64_t chunk_count(uint64_t units, int32_t chunk_log2) {
  return (units + (uint64_t{1} << chunk_log2) - 1) >> chunk_log2;
}

inline nz_encode_job encode_job(const Encoded &tensor, const Exact &src, const Exact &table, Exact *dst,
                                std::vector<uint32_t> *index) {
  nz_encode_job job = {};
  job.src = src.data();
  job.units = tensor.units;
  job.table = table.data();
  job.table_bytes = static_cast<uint32_t>(table.size());
  job.layout = tensor.layout;
  job.chunk_log2 = tensor.chunk_log2;
  job.dst = dst->data();
  job.capacity = dst->size();
  job.index = index->data();
  return job;
}

inline nz_decode_job decode_job(const Encoded &tensor, const Exact &src, const Exact &table, Exact *dst) {
  nz_decode_job job = {};
  job.src = src.data();
  job.size = src.size();
  job.index = tensor.index.data();
  job.units = tensor.units;
  job.table = table.data();
  job.table_bytes = static_cast<uint32_t>(table.size());
  job.layout = tensor.layout;
  job.chunk_log2 = tensor.chunk_log2;
  job.verify = 1;
  job.dst = dst->data();
  return job;
}

// The tensor, planned and encoded by one thread.
inline Encoded encode(int32_t layout, int32_t level, int32_t chunk_log2, Bytes original) {
  Encoded tensor{layout, level, chunk_log2, original.size() / kWidths[layout], std::move(original),
                 {},     {},    {}};
  const uint64_t chunks = chunk_count(tensor.units, chunk_log2);
  const Exact src(tensor.original);
  tensor.table.resize(NZ_TABLE_CAPACITY);
  const int32_t table_size =
      nz_plan(layout, level, chunk_log2, src.data(), tensor.units, tensor.table.data());
  REQUIRE(table_size >= 0);
  tensor.table.resize(static_cast<size_t>(table_size));
  tensor.index.resize(2 * chunks);
  Exact dst(chunks * nz_chunk_bound(layout, chunk_log2));
  const Exact table(tensor.table);
  nz_encode_job job = encode_job(tensor, src, table, &dst, &tensor.index);
  REQUIRE(nz_encode(&job, 1, 1) == NZ_OK);
  REQUIRE(src.equals(tensor.original));
  tensor.chunks.assign(dst.data(), dst.data() + job.written);
  return tensor;
}

#endif
