// Planes, compared with the definitions of the spec, since all loops are compiled from one source (planes.h).
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "guarded.h"
#include "rans.h"

namespace nz_test {
namespace {

using nz::Kernels;
using nz::kScalarKernels;

// Spec §3, literally.
uint8_t plane_byte(const uint8_t *unit, int width, bool rotate, int plane) {
  uint64_t x = 0;
  std::memcpy(&x, unit, static_cast<size_t>(width));
  if (rotate) {
    const int shift = 8 * width - 16;
    const uint64_t h = x >> shift & 0xffff;
    x = (x & ~(uint64_t{0xffff} << shift)) | ((h << 1 | h >> 15) & 0xffff) << shift;
  }
  return static_cast<uint8_t>(x >> 8 * (width - 1 - plane));
}

}  // namespace

void check_planes(const Kernels &tested, Random &random) {
  for (int rotate = 0; rotate < 2; rotate++)
    for (int log2 = 0; log2 < 4; log2++) {
      if (rotate && log2 == 0) continue;  // a unit of one byte has no top 16 bits
      const int width = 1 << log2;
      const size_t sizes[] = {0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 65, 127, 255, 256, 257, 511, 777, 2048};
      for (size_t n : sizes) {
        Guarded units(n * width), back(n * width);
        fill(random, units.data, units.size);
        std::vector<std::unique_ptr<Guarded>> planes;
        uint8_t *at[8];
        for (int p = 0; p < width; p++) {
          planes.push_back(std::make_unique<Guarded>(n));
          at[p] = planes.back()->data;
        }
        tested.split[rotate][log2](units.data, at, n);
        bool ok = true;
        for (int p = 0; p < width; p++)
          for (size_t i = 0; i < n; i++)
            ok &= at[p][i] == plane_byte(units.data + i * width, width, rotate != 0, p);
        check(ok, "split", static_cast<uint64_t>(width), n);
        tested.merge[rotate][log2](at, back.data, n);
        check(equal(back.data, units.data, units.size), "merge", static_cast<uint64_t>(width), n);
      }
    }
}

void check_joint(const Kernels &tested, Random &random) {
  for (size_t blocks : {0, 1, 2, 7})
    for (int spread : {20, 64, 256}) {
      const size_t n = 128 * blocks;
      const uint8_t base =
          static_cast<uint8_t>(spread == 64 ? 192 : below(random, 193));  // §4.6: at most 192
      const uint8_t filler = static_cast<uint8_t>(random());
      Guarded plane0(n), plane1(n), symbols(n), six(96 * blocks), back0(n), back1(n);
      bool missing = false, ok = true;
      fill(random, plane1.data, n);
      for (size_t i = 0; i < n; i++) {
        plane0.data[i] = static_cast<uint8_t>(base + below(random, static_cast<uint64_t>(spread)));
        missing |= plane0.data[i] < base || plane0.data[i] - base > 63;  // §4.6: the symbol is 0 … 255
      }
      check(tested.split_joint(plane0.data, plane1.data, base, filler, symbols.data, six.data, blocks) ==
                missing,
            "split_joint's answer", blocks, static_cast<uint64_t>(spread));
      for (size_t i = 0; i < n; i++) {
        const int symbol = plane0.data[i] * 4 + (plane1.data[i] >> 6) - 4 * base;
        ok &= symbols.data[i] == (symbol >= 0 && symbol <= 255 ? symbol : filler);
      }
      for (size_t b = 0; b < blocks; b++) {
        const uint8_t *q = plane1.data + 128 * b;
        for (size_t j = 0; j < 96; j++)
          ok &= six.data[96 * b + j] == ((q[j] & 63) | (q[96 + j % 32] >> 2 * (j / 32) & 3) << 6);
      }
      check(ok, "split_joint", blocks, static_cast<uint64_t>(spread));
      tested.merge_joint(symbols.data, six.data, base, back0.data, back1.data, blocks);
      for (size_t i = 0; i < n; i++) {
        if (symbols.data[i] == filler) continue;  // perhaps not the unit's own
        ok &= back0.data[i] == plane0.data[i] && back1.data[i] == plane1.data[i];
      }
      check(ok, "merge_joint", blocks, static_cast<uint64_t>(spread));
    }
}

void check_checksum(const Kernels &tested, Random &random) {
  check(tested.checksum64("", 0) == 0x2d06800538d394c2, "checksum64 of nothing");  // XXH3's published value
  for (size_t n = 0; n < 3000; n += n < 600 ? 1 : 97) {
    Guarded bytes(n);
    fill(random, bytes.data, n);
    check(tested.checksum64(bytes.data, n) == kScalarKernels.checksum64(bytes.data, n), "checksum64", n);
  }
}

}  // namespace nz_test
