#include "shared.h"

namespace nz::emulator {

void poison(void *at, size_t size, Chance *chance) {
  // Byte by byte: memset and memcpy would be AddressSanitizer's, which look at what is between variables.
  volatile unsigned char *const bytes = static_cast<unsigned char *>(at);
  for (size_t i = 0; i < size; i++) bytes[i] = static_cast<unsigned char>(chance->next() >> 8);
}

void poison_shared(Chance *chance) {
  poison(nz_emulator_shared_begin, static_cast<size_t>(nz_emulator_shared_end - nz_emulator_shared_begin),
         chance);
}

}  // namespace nz::emulator
