// xorshift64*: the order of threads and the bytes of poison need no better.
#ifndef NEUZIP_CUDA_EMULATOR_CHANCE_H
#define NEUZIP_CUDA_EMULATOR_CHANCE_H

#include <cstdint>

namespace nz::emulator {

class Chance {
 public:
  explicit Chance(uint64_t seed) : state_((seed * 0x9e3779b97f4a7c15 ^ 0x2545f4914f6cdd1d) | 1) {}
  uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545f4914f6cdd1d >> 32);
  }

 private:
  uint64_t state_;
};

}  // namespace nz::emulator

#endif
