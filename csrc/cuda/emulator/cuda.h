// CUDA C++ for a host compiler: the words and functions that the kernels use beyond C++, for the emulator.
//
// Memory is ordered by __syncwarp, __syncthreads and nothing else, as ThreadSanitizer sees it: collectives
// that exchange values do not make stores visible (CUDA programming guide, Warp Shuffle Functions).
#ifndef NEUZIP_CUDA_EMULATOR_CUDA_H
#define NEUZIP_CUDA_EMULATOR_CUDA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "thread.h"

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (nz::emulator::place->thread)
#define blockIdx (nz::emulator::place->block)
#define blockDim (nz::emulator::place->block_size)
#define gridDim (nz::emulator::place->grid_size)

#define NZ_DYNAMIC_SHARED(T, name) T *const name = static_cast<T *>(nz::emulator::dynamic_shared())
#define NZ_KERNEL(name)                                               \
  __attribute__((constructor)) static void nz_emulator_add_##name() { \
    nz::emulator::add_kernel(#name, name);                            \
  }                                                                   \
  static_assert(true, "")

namespace nz::emulator {

template <typename... Parameters, size_t... kIndices>
void invoke(void (*function)(Parameters...), const void *const *arguments, std::index_sequence<kIndices...>) {
  function(*static_cast<const Parameters *>(arguments[kIndices])...);
}

template <typename... Parameters>
void add_kernel(const char *name, void (*function)(Parameters...)) {
  const uint64_t sizes[] = {sizeof(Parameters)...};
  add_kernel(
      name, reinterpret_cast<void (*)()>(function),
      [](void (*erased)(), const void *const *arguments) {
        invoke(reinterpret_cast<void (*)(Parameters...)>(erased), arguments,
               std::index_sequence_for<Parameters...>());
      },
      sizes, sizeof...(Parameters));
}

template <typename T>
uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a collective exchanges at most 64 bits");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}

template <typename T>
T value_of(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// A GPU faults where an address is not a multiple of the size.
template <typename T>
T load(const T *at, Site site) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T)) misuse("a misaligned load", site);
  return *at;
}

inline void copy(const Copy &copy) {
  for (uint32_t i = 0; i < 16; i++)
    static_cast<uint8_t *>(copy.to)[i] = i < copy.bytes ? static_cast<const uint8_t *>(copy.from)[i] : 0;
}

inline uint32_t own_lane() { return place->thread.x % 32; }

}  // namespace nz::emulator

// Where a function is called.
#define NZ_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define NZ_MEET(collective, mask, value, source) \
  nz::emulator::meet(nz::emulator::Collective::collective, mask, value, source, {file, line})

inline void __syncthreads(NZ_SITE) { nz::emulator::barrier({file, line}); }
inline void __syncwarp(uint32_t mask = 0xffffffff, NZ_SITE) { NZ_MEET(kSync, mask, 0, 0); }
inline uint32_t __ballot_sync(uint32_t mask, bool value, NZ_SITE) {
  return static_cast<uint32_t>(NZ_MEET(kBallot, mask, value, 0));
}
inline int __all_sync(uint32_t mask, bool value, NZ_SITE) {
  return static_cast<int>(NZ_MEET(kAll, mask, value, 0));
}
inline int __any_sync(uint32_t mask, bool value, NZ_SITE) {
  return static_cast<int>(NZ_MEET(kAny, mask, value, 0));
}
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value, NZ_SITE) {
  return static_cast<uint32_t>(NZ_MEET(kMatchAny, mask, nz::emulator::bits_of(value), 0));
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, uint32_t source, NZ_SITE) {
  return nz::emulator::value_of<T>(NZ_MEET(kShuffle, mask, nz::emulator::bits_of(value), source % 32));
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, uint32_t delta, NZ_SITE) {
  const uint32_t own = nz::emulator::own_lane(), source = own < delta ? own : own - delta;
  return nz::emulator::value_of<T>(NZ_MEET(kShuffle, mask, nz::emulator::bits_of(value), source));
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, uint32_t delta, NZ_SITE) {
  const uint32_t own = nz::emulator::own_lane(), source = own + delta > 31 ? own : own + delta;
  return nz::emulator::value_of<T>(NZ_MEET(kShuffle, mask, nz::emulator::bits_of(value), source));
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, uint32_t flip, NZ_SITE) {
  const uint32_t source = (nz::emulator::own_lane() ^ flip) % 32;
  return nz::emulator::value_of<T>(NZ_MEET(kShuffle, mask, nz::emulator::bits_of(value), source));
}

template <typename T>
T __ldg(const T *at, NZ_SITE) {
  return nz::emulator::load(at, {file, line});
}

inline float __uint_as_float(uint32_t bits) { return nz::emulator::value_of<float>(bits); }
inline uint32_t __float_as_uint(float value) { return static_cast<uint32_t>(nz::emulator::bits_of(value)); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<uint32_t>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 Wide;
  return static_cast<unsigned long long>(static_cast<Wide>(a) * b >> 64);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> shift % 32);
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; i++) {
    // Bit 3 of a selector replicates a byte's sign.
    const uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7)) & 0xff;
    result |= (selector >> (4 * i + 3) & 1 ? (byte >> 7) * 0xff : byte) << 8 * i;
  }
  return result;
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  typedef std::common_type_t<A, B> T;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  typedef std::common_type_t<A, B> T;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

namespace nz {

// Those of async.cuh. A prefetch is a read, so that it is seen where it goes.
inline void copy16_async(void *shared, const uint8_t *from, uint32_t bytes, NZ_SITE) {
  if (bytes > 16) emulator::misuse("a copy of more than 16 bytes", {file, line});
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    emulator::misuse("a misaligned copy", {file, line});
  emulator::Copies *const copies = emulator::copies();
  const emulator::Copy copy = {shared, from, bytes, copies->groups};
  if (emulator::is_early())
    emulator::copy(copy);
  else
    copies->late.push_back(copy);
}

inline void commit_copies() { emulator::copies()->groups++; }

template <int kLater>
void wait_for_copies() {
  emulator::Copies *const copies = emulator::copies();
  size_t done = 0;
  while (done < copies->late.size() && copies->late[done].group + kLater < copies->groups)
    emulator::copy(copies->late[done++]);
  copies->late.erase(copies->late.begin(), copies->late.begin() + static_cast<ptrdiff_t>(done));
}

inline uint32_t load_shared_u16(const void *shared, uint32_t offset) {
  return *reinterpret_cast<const uint16_t *>(static_cast<const uint8_t *>(shared) + offset);
}

inline void prefetch(const uint8_t *at) { static_cast<void>(*static_cast<const volatile uint8_t *>(at)); }

}  // namespace nz

// Atomics order no other memory.
template <typename T, typename V>
T atomicAdd(T *at, V value) {
  return __atomic_fetch_add(at, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename V>
T atomicOr(T *at, V value) {
  return __atomic_fetch_or(at, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename V>
T atomicMin(T *at, V value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (static_cast<T>(value) < old && !__atomic_compare_exchange_n(at, &old, static_cast<T>(value), true,
                                                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T, typename V>
T atomicMax(T *at, V value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < static_cast<T>(value) && !__atomic_compare_exchange_n(at, &old, static_cast<T>(value), true,
                                                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

#endif
