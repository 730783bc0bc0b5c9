// Values at a fixed width: making them, the plain loops, and matrix products of them.
#include "fixed_width.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "neuzip.h"
#include "thread_pool.h"

namespace nz {
namespace {

constexpr int kRanks = 15;  // the sixteenth is left to values that are listed
constexpr uint8_t kNoRank = kRanks;
constexpr uint64_t kMaxEscapes = 64;    // one value in so many: more, and the form costs 13 bits a value
constexpr size_t kTaskBytes = 1 << 17;  // of code a thread takes at a time: some 10 µs of work
constexpr uint64_t kTaskValues = kTaskBytes / 2;
constexpr size_t kPanelBytes =
    1 << 18;  // of x that is multiplied by one row after another: half a level 2 cache

typedef uint16_t __attribute__((aligned(1), may_alias)) Unit16;

constexpr uint8_t exponent_of(uint16_t value) { return static_cast<uint8_t>(value >> 7); }

float to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// To nearest, ties to even; every NaN becomes the one that torch makes of it.
uint16_t to_bf16(float value) {
  if (std::isnan(value)) return 0x7fc0;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct Places {
  uint8_t of[kBlockValues];
  constexpr Places() : of{} {
    for (size_t i = 0; i < kBlockValues; i++) of[i] = static_cast<uint8_t>(place_in_block(i));
  }
};
constexpr Places kPlaces;

uint16_t value_at(const uint8_t *block, const uint8_t *exponents, size_t i) {
  const size_t place = kPlaces.of[i];
  const uint8_t byte = block[kRankBytes + place];
  const int rank = block[place % kRankBytes] >> (place / kRankBytes * 4) & 15;
  return static_cast<uint16_t>((byte & 0x80) << 8 | exponents[rank] << 7 | (byte & 0x7f));
}

void expand(const uint8_t *blocks, size_t count, const uint8_t *exponents, uint16_t *values) {
  for (; count; count--, blocks += kBlockBytes)
    for (size_t i = 0; i < kBlockValues; i++) *values++ = value_at(blocks, exponents, i);
}

void expand_floats(const uint8_t *blocks, size_t count, const uint8_t *exponents, float *values) {
  for (; count; count--, blocks += kBlockBytes)
    for (size_t i = 0; i < kBlockValues; i++) *values++ = to_float(value_at(blocks, exponents, i));
}

void multiply(const uint8_t *blocks, size_t count, const uint8_t *exponents, const float *x, float *sums) {
  for (; count; count--, blocks += kBlockBytes, x += kBlockValues)
    for (size_t i = 0; i < kBlockValues; i++)
      sums[i] = std::fmaf(to_float(value_at(blocks, exponents, i)), x[i], sums[i]);
}

void multiply_floats(const float *values, size_t count, const float *x, float *sums) {
  for (; count; count--, values += kBlockValues, x += kBlockValues)
    for (size_t i = 0; i < kBlockValues; i++) sums[i] = std::fmaf(values[i], x[i], sums[i]);
}

const FixedWidthKernels &fixed_width_kernels() {
#if defined(NEUZIP_HAVE_AVX2)
  const int32_t isa = nz_isa_current();
  if (isa == NZ_AVX2 || isa == NZ_AVX512) return kAvx2FixedWidth;
#endif
  return kScalarFixedWidth;
}

uint64_t block_count(uint64_t values) { return values / kBlockValues + (values % kBlockValues != 0); }

// The parts of what nz_fixed_encode has written.
struct FixedWidth {
  const uint8_t *exponents, *blocks;
  const Escape *escapes, *end;

  uint64_t count;  // values

  // False if it cannot be that.
  bool read(const uint8_t *code, uint64_t size) {
    if (size < kFixedHeader || std::memcmp(code, kFixedMagic, sizeof kFixedMagic) != 0) return false;
    std::memcpy(&count, code + kCountAt, sizeof count);
    const uint64_t blocks_there = block_count(count), rest = size - kFixedHeader;
    if (blocks_there > rest / kBlockBytes) return false;
    if ((rest - blocks_there * kBlockBytes) % sizeof(Escape) != 0) return false;
    exponents = code + kExponentsAt, blocks = code + kFixedHeader;
    escapes = reinterpret_cast<const Escape *>(blocks + blocks_there * kBlockBytes);
    end = reinterpret_cast<const Escape *>(code + size);
    return true;
  }

  const Escape *first_escape(uint64_t block) const {
    return std::lower_bound(escapes, end, block, [](const Escape &e, uint64_t at) { return e.block < at; });
  }

  // Puts those of the blocks' values that are listed in their places.
  template <typename Value, typename Convert>
  void place_escapes(uint64_t first, size_t count, Value *out, const Convert &convert) const {
    for (const Escape *e = first_escape(first); e != end && e->block < first + count; e++)
      out[(e->block - first) * kBlockValues + e->index % kBlockValues] = convert(e->value);
  }
  void expand(uint64_t first, size_t count, uint16_t *out) const {
    fixed_width_kernels().expand(blocks + first * kBlockBytes, count, exponents, out);
    place_escapes(first, count, out, [](uint16_t value) { return value; });
  }
  void expand_floats(uint64_t first, size_t count, float *out) const {
    fixed_width_kernels().expand_floats(blocks + first * kBlockBytes, count, exponents, out);
    place_escapes(first, count, out, to_float);
  }

  // sums += the values of blocks from `first` on · x: runs of blocks without listed values, and the others.
  void multiply(uint64_t first, size_t count, const float *x, float *sums) const {
    const FixedWidthKernels &kernels = fixed_width_kernels();
    const uint64_t last = first + count;
    const Escape *e = first_escape(first);
    for (uint64_t at = first; at < last; x += kBlockValues) {
      const uint64_t next = e != end && e->block < last ? e->block : last;
      kernels.multiply(blocks + at * kBlockBytes, next - at, exponents, x, sums);
      x += (next - at) * kBlockValues;
      if (next == last) return;
      alignas(32) float block[kBlockValues];
      expand_floats(next, 1, block);
      kernels.multiply_floats(block, 1, x, sums);
      while (e != end && e->block == next) e++;
      at = next + 1;
    }
  }
};

// Ranks by how often exponents occur; exponents without one get kNoRank.
void rank_exponents(const uint8_t *src, uint64_t values, uint8_t *ranks, uint8_t *exponents) {
  uint64_t counts[256] = {};
  const Unit16 *const units = reinterpret_cast<const Unit16 *>(src);
  for (uint64_t i = 0; i < values; i++) counts[exponent_of(units[i])]++;
  std::memset(ranks, kNoRank, 256);
  for (uint8_t rank = 0; rank < kRanks; rank++) {
    const uint64_t *const most = std::max_element(counts, counts + 256);
    if (!*most) return;
    exponents[rank] = static_cast<uint8_t>(most - counts);
    ranks[exponents[rank]] = rank;
    counts[exponents[rank]] = 0;
  }
}

uint64_t encode(const uint8_t *src, uint64_t values, uint8_t *dst, uint64_t capacity) {
  const uint64_t count = block_count(values), most = values / kMaxEscapes;
  if (count > UINT32_MAX || capacity < kFixedHeader + count * kBlockBytes + most * sizeof(Escape)) return 0;
  uint8_t ranks[256];
  std::memset(dst, 0, kFixedHeader + count * kBlockBytes);
  std::memcpy(dst, kFixedMagic, sizeof kFixedMagic);
  std::memcpy(dst + kCountAt, &values, sizeof values);
  rank_exponents(src, values, ranks, dst + kExponentsAt);
  Escape *const escapes = reinterpret_cast<Escape *>(dst + kFixedHeader + count * kBlockBytes);
  uint64_t escaped = 0;
  for (uint64_t i = 0; i < values; i++) {
    const uint16_t value = reinterpret_cast<const Unit16 *>(src)[i];
    const size_t place = kPlaces.of[i % kBlockValues];
    uint8_t *const block = dst + kFixedHeader + i / kBlockValues * kBlockBytes;
    const uint8_t rank = ranks[exponent_of(value)];
    block[kRankBytes + place] = static_cast<uint8_t>((value >> 8 & 0x80) | (value & 0x7f));
    block[place % kRankBytes] |= static_cast<uint8_t>(rank << (place / kRankBytes * 4));
    if (rank != kNoRank) continue;
    if (escaped == most) return 0;
    escapes[escaped++] = {static_cast<uint32_t>(i / kBlockValues), static_cast<uint16_t>(i % kBlockValues),
                          value};
  }
  return kFixedHeader + count * kBlockBytes + escaped * sizeof(Escape);
}

// The first and last blocks may be wanted in part.
void decode(const FixedWidth &code, uint64_t first, uint64_t count, uint8_t *dst) {
  const auto edge = [&](uint64_t at, uint64_t upto) {
    uint16_t block[kBlockValues];
    code.expand(at / kBlockValues, 1, block);
    std::memcpy(dst, block + at % kBlockValues, (upto - at) * 2);
    dst += (upto - at) * 2;
  };
  const uint64_t stop = first + count, whole = (first + kBlockValues - 1) / kBlockValues * kBlockValues;
  if (first < std::min(whole, stop)) edge(first, std::min(whole, stop));
  if (whole >= stop) return;
  const uint64_t blocks = (stop - whole) / kBlockValues;
  code.expand(whole / kBlockValues, blocks, reinterpret_cast<uint16_t *>(dst));
  dst += blocks * kBlockValues * 2;
  if (whole + blocks * kBlockValues < stop) edge(whole + blocks * kBlockValues, stop);
}

// A product y = x Wᵀ + bias, of which threads compute columns.
struct Product {
  const nz_fixed_linear_job &job;
  FixedWidth code;
  std::vector<float> x;
  uint64_t columns_at_once;
  std::atomic<uint64_t> next{0};
  std::atomic<uint64_t> done{0};

  uint64_t blocks() const { return job.in_features / kBlockValues; }

  void work() {
    std::vector<float> row;
    try {
      if (job.rows > 1) row.resize(job.in_features);
    } catch (const std::bad_alloc &) {
      return;
    }
    for (;;) {
      const uint64_t first = next.fetch_add(columns_at_once, std::memory_order_relaxed);
      if (first >= job.out_features) return;
      const uint64_t last = std::min(first + columns_at_once, job.out_features);
      if (job.rows == 1)
        for (uint64_t column = first; column < last; column++) multiply_one(column);
      else
        multiply_panels(first, last, row.data());
      done += last - first;
    }
  }

  void multiply_one(uint64_t column) const {
    alignas(32) Sums sums = {};
    code.multiply(column * blocks(), blocks(), x.data(), sums);
    finish(0, column, sums);
  }

  // Rows of x that stay in the cache, by one row of the weight after another, expanded anew for each panel.
  void multiply_panels(uint64_t first, uint64_t last, float *row) const {
    const uint64_t panel = std::max<uint64_t>(1, kPanelBytes / (job.in_features * sizeof(float)));
    for (uint64_t begin = 0; begin < job.rows; begin += panel)
      for (uint64_t column = first; column < last; column++) {
        code.expand_floats(column * blocks(), blocks(), row);
        for (uint64_t r = begin; r < std::min(begin + panel, job.rows); r++) {
          alignas(32) Sums sums = {};
          fixed_width_kernels().multiply_floats(row, blocks(), x.data() + r * job.in_features, sums);
          finish(r, column, sums);
        }
      }
  }

  // Adds the sums up in halves, as torch does, with the zero that its empty remainder adds.
  void finish(uint64_t r, uint64_t column, float *sums) const {
    for (size_t n = kBlockValues / 2; n; n /= 2)
      for (size_t i = 0; i < n; i++) sums[i] += sums[i + n];
    float sum = sums[0] + 0.0f;
    if (job.bias) sum += to_float(reinterpret_cast<const Unit16 *>(job.bias)[column]);
    reinterpret_cast<Unit16 *>(job.y)[r * job.out_features + column] = to_bf16(sum);
  }
};

int32_t multiply(const nz_fixed_linear_job &job, int32_t threads) {
  Product product{job, {}, {}, 1};
  if (job.in_features % kBlockValues != 0 || !job.in_features || !product.code.read(job.code, job.size) ||
      product.code.count % job.in_features != 0 || product.code.count / job.in_features != job.out_features)
    return NZ_ARGUMENT;
  product.x.resize(job.rows * job.in_features);
  for (size_t i = 0; i < product.x.size(); i++)
    product.x[i] = to_float(reinterpret_cast<const Unit16 *>(job.x)[i]);
  product.columns_at_once = std::max<uint64_t>(1, kTaskBytes / (product.blocks() * kBlockBytes));
  const uint64_t tasks = (job.out_features + product.columns_at_once - 1) / product.columns_at_once;
  run_threads(threads, tasks, [&] { product.work(); });
  return product.done == job.out_features ? NZ_OK : NZ_MEMORY;
}

}  // namespace

const FixedWidthKernels kScalarFixedWidth = {expand, expand_floats, multiply, multiply_floats};

}  // namespace nz

using namespace nz;

extern "C" {

uint64_t nz_fixed_bound(uint64_t values) {
  return kFixedHeader + block_count(values) * kBlockBytes + values / kMaxEscapes * sizeof(Escape);
}

uint64_t nz_fixed_encode(const uint8_t *src, uint64_t values, uint8_t *dst, uint64_t capacity) {
  return encode(src, values, dst, capacity);
}

int32_t nz_fixed_decode(const uint8_t *code, uint64_t size, uint64_t first, uint64_t count, uint8_t *dst,
                        int32_t threads) {
  FixedWidth parts;
  if (!parts.read(code, size) || first > parts.count || count > parts.count - first) return NZ_ARGUMENT;
  const uint64_t tasks = (count + kTaskValues - 1) / kTaskValues;
  std::atomic<uint64_t> next{0};
  run_threads(threads, tasks, [&] {
    for (uint64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const uint64_t from = task * kTaskValues;
      decode(parts, first + from, std::min(kTaskValues, count - from), dst + 2 * from);
    }
  });
  return NZ_OK;
}

int32_t nz_fixed_linear(const nz_fixed_linear_job *job, int32_t threads) {
  try {
    return multiply(*job, threads);
  } catch (const std::exception &) {  // bad_alloc and length_error
    return NZ_MEMORY;
  }
}

}  // extern "C"
