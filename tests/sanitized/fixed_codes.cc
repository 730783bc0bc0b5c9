// Values at a fixed width in buffers of exactly their sizes: made, given back in parts, multiplied by several
// threads. All instruction sets must agree.
#include <cstring>

#include "tensor.h"

namespace {

// Weights around 0, and every so often a value of any exponent.
Bytes make_values(size_t count) {
  Bytes values(2 * count);
  uint32_t state = 1;
  for (size_t i = 0; i < count; i++) {
    state = state * 1664525 + 1013904223;
    const uint32_t exponent = state % 97 == 0 ? state >> 12 & 255 : 118 + (state >> 20) % 9;
    const uint32_t value = (state >> 16 & 0x8000) | exponent << 7 | (state >> 8 & 0x7f);
    values[2 * i] = static_cast<uint8_t>(value), values[2 * i + 1] = static_cast<uint8_t>(value >> 8);
  }
  return values;
}

Bytes encode_values(const Bytes &values) {
  Bytes code(nz_fixed_bound(values.size() / 2));
  const Exact src(values);
  const uint64_t size = nz_fixed_encode(src.data(), values.size() / 2, code.data(), code.size());
  REQUIRE(size > 0 && size <= code.size());
  code.resize(size);
  return code;
}

void check_parts(const Bytes &values, const Exact &code) {
  const uint64_t count = values.size() / 2;
  for (uint64_t first : {uint64_t{0}, uint64_t{1}, uint64_t{63}, uint64_t{64}, count / 2, count - 1, count})
    for (uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{64}, uint64_t{130}, count}) {
      if (first > count || length > count - first) continue;
      Exact dst(2 * length);
      REQUIRE(nz_fixed_decode(code.data(), code.size(), first, length, dst.data(), 3) == NZ_OK);
      REQUIRE(std::memcmp(dst.data(), values.data() + 2 * first, 2 * length) == 0);
    }
}

Bytes product(const Exact &code, uint64_t out, uint64_t in, const Exact &x, uint64_t rows) {
  Bytes y(2 * rows * out);
  const nz_fixed_linear_job job{code.data(), code.size(), out, in, x.data(), rows, x.data(), y.data()};
  REQUIRE(nz_fixed_linear(&job, 3) == NZ_OK);
  return y;
}

}  // namespace

int main() {
  for (size_t count : {1, 63, 64, 65, 1000, 100000})
    check_parts(make_values(count), Exact(encode_values(make_values(count))));
  constexpr uint64_t kOut = 900, kIn = 320;  // several tasks
  const Exact code(encode_values(make_values(kOut * kIn)));
  for (uint64_t rows : {1, 5}) {
    const Exact x(make_values(rows * kIn > kOut ? rows * kIn : kOut));  // the bias too
    nz_isa_select(NZ_SCALAR);
    const Bytes expected = product(code, kOut, kIn, x, rows);
    for (int32_t isa = 0; isa < NZ_ISA_COUNT; isa++)
      if (nz_isa_select(isa) == NZ_OK) REQUIRE(product(code, kOut, kIn, x, rows) == expected);
  }
  return 0;
}
