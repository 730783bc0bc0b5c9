// A thread of execution with a stack of its own that runs until it hands over to another.
#ifndef NEUZIP_CUDA_EMULATOR_FIBER_H
#define NEUZIP_CUDA_EMULATOR_FIBER_H

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace nz::emulator {

class Fiber {
 public:
  // The flow of control that is running.
  Fiber();
  // A new one: runs body() when it is first handed over to. body never returns.
  explicit Fiber(void (*body)());
  ~Fiber();
  Fiber(const Fiber &) = delete;
  Fiber &operator=(const Fiber &) = delete;

  // Hands over from the running fiber, which is `from`. Orders no memory as ThreadSanitizer sees it. ends:
  // `from` will never run again.
  static void hand_over(Fiber *from, Fiber *to, bool ends = false);

 private:
  static void arrive();
  static void enter();

  void (*body_)() = nullptr;
  char *mapping_ = nullptr;  // guard page and stack; null for a flow of control that was there
  void *tsan_ = nullptr;
  // AddressSanitizer's view of the stack.
  void *fake_stack_ = nullptr;
  const void *bottom_ = nullptr;
  size_t size_ = 0;
#ifdef __x86_64__
  void *top_ = nullptr;  // of the stack while another runs; the saved registers are there
#else
  ucontext_t context_;
#endif
};

// Orders memory as ThreadSanitizer sees it: what came before release(at) is before what follows acquire(at).
void release(void *at);
void acquire(void *at);

}  // namespace nz::emulator

#endif
