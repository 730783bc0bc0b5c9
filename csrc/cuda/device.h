/* What the kernels stand on: fixed-width integers, for which NVRTC has no header, and, where a C++ compiler
 * for the host reads them, the emulator that runs them there.
 *
 * NZ_KERNEL(name);          behind the definition of each kernel: the emulator launches it by name and checks
 * its arguments. Means nothing on a GPU. NZ_DYNAMIC_SHARED(T, name); in a kernel: `name` is a T *, the
 * block's dynamic shared memory, aligned to 16. */
#ifndef NEUZIP_CUDA_DEVICE_H
#define NEUZIP_CUDA_DEVICE_H

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;
#else
#include <stdint.h>
#endif

#if defined(__CUDACC__)
#define NZ_KERNEL(name) static_assert(true, "")
#define NZ_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char nz_dynamic_shared[]; \
  T *const name = reinterpret_cast<T *>(nz_dynamic_shared)
#else
#include "emulator/cuda.h"
#endif

#endif
