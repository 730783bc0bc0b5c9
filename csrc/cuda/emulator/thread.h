// A CUDA thread as the code that it runs sees it: where it is, and where it meets the others.
#ifndef NEUZIP_CUDA_EMULATOR_THREAD_H
#define NEUZIP_CUDA_EMULATOR_THREAD_H

#include <stdint.h>

struct uint3 {
  uint32_t x, y, z;
};

namespace nz::emulator {

// Of the running thread.
struct Place {
  uint3 thread, block, block_size, grid_size;
};
extern Place *place;

// A line of the source. Threads that wait for each other must do so at the same one.
struct Site {
  const char *file;
  int line;
};

enum class Collective : uint8_t {
  kSync,
  kBallot,
  kAll,
  kAny,
  kShuffle,
  kMatchAny,
  kAdd,
  kMin,
  kMax,
  kAnd,
  kOr,
  kXor
};

uint64_t meet(Collective collective, uint32_t mask, uint64_t value, uint32_t source, Site site);
void barrier(Site site);
[[noreturn]] void misuse(const char *what, Site site);
void *dynamic_shared();

// Makes a kernel known. sizes: of its parameters.
void add_kernel(const char *name, void (*function)(), void (*invoke)(void (*)(), const void *const *),
                const uint64_t *sizes, uint32_t count);

}  // namespace nz::emulator

#endif
