// Shuffles of eight 16-bit lanes for instruction sets that cannot expand or compress a register.
#ifndef NEUZIP_WORD_SHUFFLES_H
#define NEUZIP_WORD_SHUFFLES_H

#include <cstdint>

namespace nz {

// For each set of eight lanes, as a mask: bytes for a shuffle whose indices above 127 answer 0.
struct WordShuffles {
  alignas(16) uint8_t take[256][16];   // decoding: the next word of the stream into each lane of the set
  alignas(16) uint8_t place[256][16];  // encoding: the words of the set's lanes, together at the end
  uint8_t bytes[256];                  // of the set's words
};

constexpr WordShuffles make_word_shuffles() {
  WordShuffles s = {};
  for (int set = 0; set < 256; set++) {
    int total = 0, word = 0;
    for (int lane = 0; lane < 8; lane++) total += set >> lane & 1;
    for (int i = 0; i < 16; i++) s.take[set][i] = s.place[set][i] = 0x80;
    for (int lane = 0; lane < 8; lane++) {
      if (!(set >> lane & 1)) continue;
      for (int byte = 0; byte < 2; byte++) {
        s.take[set][2 * lane + byte] = static_cast<uint8_t>(2 * word + byte);
        s.place[set][2 * (8 - total + word) + byte] = static_cast<uint8_t>(2 * lane + byte);
      }
      word++;
    }
    s.bytes[set] = static_cast<uint8_t>(2 * total);
  }
  return s;
}

inline constexpr WordShuffles kWordShuffles = make_word_shuffles();

}  // namespace nz

#endif
