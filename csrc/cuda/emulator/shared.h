// Shared memory. `__shared__` variables are static ones of the kernels' object files. These have no other
// variables, so all that is between shared_begin.cc and shared_end.cc, as they are linked, is shared memory.
#ifndef NEUZIP_CUDA_EMULATOR_SHARED_H
#define NEUZIP_CUDA_EMULATOR_SHARED_H

#include <cstddef>

#include "chance.h"

extern "C" char nz_emulator_shared_begin[64], nz_emulator_shared_end[64];

namespace nz::emulator {

// Overwrites `size` bytes. Not what AddressSanitizer has put between variables is changed, but bytes it
// ignores.
void poison(void *at, size_t size, Chance *chance);
// All static shared memory.
void poison_shared(Chance *chance);

}  // namespace nz::emulator

#endif
