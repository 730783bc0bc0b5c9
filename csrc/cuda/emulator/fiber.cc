#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

// Weak: null in a process without the sanitizer. This file itself is compiled without any.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void **, const void *, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void *, const void **, size_t *);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void *, size_t);
__attribute__((weak)) void *__tsan_get_current_fiber(void);
__attribute__((weak)) void *__tsan_create_fiber(unsigned);
__attribute__((weak)) void __tsan_destroy_fiber(void *);
__attribute__((weak)) void __tsan_switch_to_fiber(void *, unsigned);
__attribute__((weak)) void __tsan_acquire(void *);
__attribute__((weak)) void __tsan_release(void *);
}

namespace nz::emulator {
namespace {

constexpr size_t kGuard = 65536;   // one page of any architecture
constexpr size_t kStack = 262144;  // frames of sanitized kernels take a tenth
constexpr unsigned kNoOrder = 1;   // __tsan_switch_to_fiber_no_sync

Fiber *previous, *running;

}  // namespace

#ifdef __x86_64__
// Saves the registers that a callee saves (System V ABI) on the stack, and the stack's top at `save`; goes on
// with those of another stack.
extern "C" void nz_emulator_swap(void **save, void *load);
asm(R"(
.text
.hidden nz_emulator_swap
.globl nz_emulator_swap
.type nz_emulator_swap, @function
nz_emulator_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size nz_emulator_swap, . - nz_emulator_swap
)");
constexpr int kSaved = 6;
#endif

Fiber::Fiber() {
  if (__tsan_get_current_fiber) tsan_ = __tsan_get_current_fiber();
}

Fiber::Fiber(void (*body)()) : body_(body) {
  void *const mapping =
      mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char *>(mapping);
  mprotect(mapping_, kGuard, PROT_NONE);
  bottom_ = mapping_ + kGuard;
  size_ = kStack;
  // What an abandoned fiber had there before.
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom_, size_);
  if (__tsan_create_fiber) tsan_ = __tsan_create_fiber(0);
#ifdef __x86_64__
  // As if enter() had been called, from nowhere, and had given way before its first instruction.
  uintptr_t *top = reinterpret_cast<uintptr_t *>(mapping_ + kGuard + kStack) - 2;
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(&Fiber::enter);
  for (int i = 0; i < kSaved; i++) *--top = 0;
  top_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = mapping_ + kGuard;
  context_.uc_stack.ss_size = kStack;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::enter, 0);
#endif
}

Fiber::~Fiber() {
  if (!mapping_) return;
  if (tsan_) __tsan_destroy_fiber(tsan_);
  munmap(mapping_, kGuard + kStack);
}

void Fiber::hand_over(Fiber *from, Fiber *to, bool ends) {
  previous = from;
  running = to;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(ends ? nullptr : &from->fake_stack_, to->bottom_, to->size_);
  if (to->tsan_) __tsan_switch_to_fiber(to->tsan_, kNoOrder);
#ifdef __x86_64__
  nz_emulator_swap(&from->top_, to->top_);
#else
  swapcontext(&from->context_, &to->context_);
#endif
  arrive();
}

// The first thing a fiber does after another has handed over to it.
void Fiber::arrive() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(running->fake_stack_, &previous->bottom_, &previous->size_);
}

void Fiber::enter() {
  arrive();
  running->body_();
}

void release(void *at) {
  if (__tsan_release) __tsan_release(at);
}

void acquire(void *at) {
  if (__tsan_acquire) __tsan_acquire(at);
}

}  // namespace nz::emulator
