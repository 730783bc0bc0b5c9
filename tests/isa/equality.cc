// Holds one instruction set's loops to the scalar ones, byte for byte, and to the reads and writes that
// kernels.h allows. Usage: equality NAME, the `name` of one of the Kernels in this build. Exits with 77 if
// this processor does not run them.
#include <cinttypes>
#include <cstdio>
#include <string>

#include "check.h"
#include "neuzip.h"

namespace nz_test {
namespace {

int failures = 0;

const nz::Kernels *find(const std::string &name) {
  const nz::Kernels *const built[] = {
      &nz::kScalarKernels,
#if defined(NEUZIP_HAVE_AVX2)
      &nz::kAvx2Kernels,
#endif
#if defined(NEUZIP_HAVE_AVX512)
      &nz::kAvx512Kernels,
#endif
#if defined(NEUZIP_HAVE_NEON)
      &nz::kNeonKernels,
#endif
  };
  for (const nz::Kernels *k : built)
    if (name == k->name) return k;
  return nullptr;
}

bool runs(const std::string &name) {
  for (int32_t isa = 0; isa < NZ_ISA_COUNT; isa++)
    if (name == nz_isa_name(isa)) return nz_isa_available(isa) != 0;
  return false;
}

}  // namespace

void check(bool ok, const char *what, uint64_t a, uint64_t b) {
  if (!ok && ++failures <= 20)
    std::fprintf(stderr, "%s differs in case %" PRIu64 ", %" PRIu64 "\n", what, a, b);
}

}  // namespace nz_test

int main(int argc, char **argv) {
  using namespace nz_test;
  const nz::Kernels *tested = argc == 2 ? find(argv[1]) : nullptr;
  if (!tested) {
    std::fprintf(stderr, "usage: equality NAME, with the name of loops in this build\n");
    return 2;
  }
  if (!runs(tested->name)) return 77;
  Random random(20240229);
  check_decoders(*tested, random);
  check_encoders(*tested, random);
  check_inverses(*tested, random);
  check_symbols(*tested, random);
  check_planes(*tested, random);
  check_joint(*tested, random);
  check_checksum(*tested, random);
  if (failures) std::fprintf(stderr, "%d failures\n", failures);
  return failures != 0;
}
