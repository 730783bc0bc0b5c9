/* The C interface of the emulator: the kernels of csrc/cuda, run on the CPU.
 *
 * Device memory is the process's memory. One launch runs at a time; others wait. Its blocks run one after
 * another, the threads of a block in turns. */
#ifndef NEUZIP_CUDA_EMULATOR_H
#define NEUZIP_CUDA_EMULATOR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/* What a kernel, or its launch, did wrong. */
typedef enum {
  NZ_EMULATOR_OK = 0,
  NZ_EMULATOR_DIVERGENCE = 1, /* threads wait for each other at different places, or with different masks */
  NZ_EMULATOR_DEADLOCK =
      2, /* a thread waits for one that cannot come: it has left, is not there, or waits for it */
  NZ_EMULATOR_ENDLESS = 3, /* more steps than allowed */
  NZ_EMULATOR_MISUSE = 4   /* what CUDA leaves undefined, an unknown kernel, wrong arguments or sizes */
} NzEmulatorFault;

typedef struct {
  uint32_t grid[3];
  uint32_t block[3];
  uint64_t shared; /* bytes of dynamic shared memory */
  uint64_t seed; /* of the order of blocks and threads, and of their turns' lengths; 0: in ascending order */
  uint64_t poison; /* of the pseudo-random bytes that shared memory begins with */
  uint64_t steps;  /* basic blocks that all threads together may enter; 0: 2^34 */
} NzEmulatorLaunch;

/* Runs a kernel to its end. arguments: addresses of `count` values, as of cuLaunchKernel; sizes: their bytes,
 * which must be those of the kernel's parameters. Returns an NzEmulatorFault. */
int nz_emulator_launch(const char *kernel, const NzEmulatorLaunch *launch, const void *const *arguments,
                       const uint64_t *sizes, uint32_t count);

/* What was wrong with the calling thread's last launch; "" if nothing was. */
const char *nz_emulator_error(void);

/* The name of kernel `index`, null if there are fewer. */
const char *nz_emulator_kernel(uint32_t index);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
