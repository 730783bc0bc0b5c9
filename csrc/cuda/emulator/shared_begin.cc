// Linked before the kernels (shared.h).
#include "shared.h"

alignas(64) char nz_emulator_shared_begin[64];
