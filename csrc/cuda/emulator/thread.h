// A CUDA thread as the code that it runs sees it: where it is, and where it meets the others.
#ifndef NEUZIP_CUDA_EMULATOR_THREAD_H
#define NEUZIP_CUDA_EMULATOR_THREAD_H

#include <stdint.h>

#include <vector>

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

// A copy of `bytes` bytes to 16 of shared memory, of which the rest become 0.
struct Copy {
  void *to;
  const void *from;
  uint32_t bytes;
  uint32_t group;
};

// A thread's copies that it has started and that are not there yet.
struct Copies {
  std::vector<Copy> late;
  uint32_t groups = 0;  // that are closed
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
Copies *copies();
// Whether a copy that is started now is there at once. Others are as late as they may.
bool is_early();

// Makes a kernel known. sizes: of its parameters.
void add_kernel(const char *name, void (*function)(), void (*invoke)(void (*)(), const void *const *),
                const uint64_t *sizes, uint32_t count);

}  // namespace nz::emulator

#endif
