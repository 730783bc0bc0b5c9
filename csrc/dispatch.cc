// Chooses the instruction set, once, or as forced.
#include <atomic>
#include <initializer_list>

#include "kernels.h"
#include "neuzip.h"

namespace nz {
namespace {

const Kernels *built(int32_t isa) {
  switch (isa) {
    case NZ_SCALAR:
      return &kScalarKernels;
#if defined(NEUZIP_HAVE_AVX2)
    case NZ_AVX2:
      return &kAvx2Kernels;
#endif
#if defined(NEUZIP_HAVE_AVX512)
    case NZ_AVX512:
      return &kAvx512Kernels;
#endif
#if defined(NEUZIP_HAVE_NEON)
    case NZ_NEON:
      return &kNeonKernels;
#endif
    default:
      return nullptr;
  }
}

// Whether the processor and the operating system run what the file of this instruction set was compiled for.
bool processor_has(int32_t isa) {
#if defined(NEUZIP_HAVE_AVX2) || defined(NEUZIP_HAVE_AVX512)
  __builtin_cpu_init();
#endif
  switch (isa) {
#if defined(NEUZIP_HAVE_AVX2)
    case NZ_AVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
             __builtin_cpu_supports("popcnt");
#endif
#if defined(NEUZIP_HAVE_AVX512)
    case NZ_AVX512:
      return processor_has(NZ_AVX2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") &&
             __builtin_cpu_supports("avx512vbmi2");
#endif
    default:
      return true;
  }
}

bool available(int32_t isa) { return built(isa) && processor_has(isa); }

int32_t best() {
  for (int32_t isa : {NZ_AVX512, NZ_AVX2, NZ_NEON})
    if (available(isa)) return isa;
  return NZ_SCALAR;
}

std::atomic<int32_t> &selected() {
  static std::atomic<int32_t> isa{best()};
  return isa;
}

}  // namespace

const Kernels &kernels() { return *built(selected().load(std::memory_order_relaxed)); }

}  // namespace nz

extern "C" {

int32_t nz_abi_version(void) { return NZ_ABI_VERSION; }

uint64_t nz_checksum64(const void *data, size_t size) { return nz::kernels().checksum64(data, size); }

const char *nz_isa_name(int32_t isa) {
  static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
  return isa >= 0 && isa < NZ_ISA_COUNT ? names[isa] : nullptr;
}

int32_t nz_isa_available(int32_t isa) { return nz::available(isa); }

int32_t nz_isa_select(int32_t isa) {
  if (isa == -1) isa = nz::best();
  if (!nz::available(isa)) return NZ_ARGUMENT;
  nz::selected() = isa;
  return NZ_OK;
}

int32_t nz_isa_current(void) { return nz::selected(); }

}  // extern "C"
