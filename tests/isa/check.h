// What the checks of equality.cc share.
#ifndef NEUZIP_TESTS_CHECK_H
#define NEUZIP_TESTS_CHECK_H

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "tables.h"

namespace nz_test {

// Counts and, the first few, reports failures; `a` and `b` say in which case.
void check(bool ok, const char *what, uint64_t a = 0, uint64_t b = 0);

inline bool equal(const void *a, const void *b, size_t size) {
  return size == 0 || std::memcmp(a, b, size) == 0;
}

inline void fill(Random &random, uint8_t *p, size_t size) {
  for (size_t i = 0; i < size; i++) p[i] = static_cast<uint8_t>(random());
}

constexpr size_t kSteps[] = {0, 1, 2, 3, 64};

enum StateKind { kValid, kLowest, kHighest, kSmall, kCorrupt, kZero, kStateKinds };

inline uint32_t state_of(Random &random, StateKind kind) {
  switch (kind) {
    case kLowest:
      return nz::kLow;
    case kHighest:
      return 0xffffffff;
    case kSmall:
      return below(random, nz::kLow);  // below what the format allows
    case kCorrupt:
      return static_cast<uint32_t>(random());
    case kZero:
      return 0;
    default:
      return nz::kLow + below(random, 0xffff0000);
  }
}

void check_decoders(const nz::Kernels &tested, Random &random);
void check_encoders(const nz::Kernels &tested, Random &random);
// Decoding what was encoded, with the tested loops in either part.
void check_inverses(const nz::Kernels &tested, Random &random);
// Finding symbols that a table lacks.
void check_symbols(const nz::Kernels &tested, Random &random);
void check_planes(const nz::Kernels &tested, Random &random);
void check_joint(const nz::Kernels &tested, Random &random);
void check_checksum(const nz::Kernels &tested, Random &random);

}  // namespace nz_test

#endif
