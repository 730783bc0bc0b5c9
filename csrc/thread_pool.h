// Threads that stay, so that a call of a few microseconds need not start and end its own.
#ifndef NEUZIP_THREAD_POOL_H
#define NEUZIP_THREAD_POOL_H

#include <cstdint>

namespace nz {

// run_threads for a function and its context. `threads` may have NZ_TEAM added (neuzip.h).
void run_on_threads(int threads, uint64_t tasks, void (*work)(void *), void *context);

// Runs work() on up to `threads` threads, this one included, but on no more than there are tasks. Threads
// that cannot be had are done without: `work` takes tasks until there are none, so whoever is there does them
// all. It must not throw, and must not call this function.
template <typename Work>
void run_threads(int threads, uint64_t tasks, Work &&work) {
  run_on_threads(threads, tasks, [](void *context) { (*static_cast<Work *>(context))(); }, &work);
}

}  // namespace nz

#endif
