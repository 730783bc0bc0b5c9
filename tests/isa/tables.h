// Frequency tables for the tests, made through their bytes (spec §4.2, §4.3).
#ifndef NEUZIP_TESTS_TABLES_H
#define NEUZIP_TESTS_TABLES_H

#include <cstdint>
#include <random>
#include <vector>

#include "table.h"

namespace nz_test {

using Random = std::mt19937_64;

// Below `bound`. The distributions of <random> differ from library to library; this does not.
inline uint32_t below(Random &random, uint64_t bound) { return static_cast<uint32_t>(random() % bound); }

// Tables with these weights, or frequencies, for symbols chosen at random.
nz::RankTable rank_table(Random &random, const std::vector<int> &main, const std::vector<int> &fine);
nz::ByteTable byte_table(Random &random, int bits, const std::vector<int> &frequencies);

// Extreme tables, and random_count others.
std::vector<nz::RankTable> rank_tables(Random &random, int random_count);
std::vector<nz::ByteTable> byte_tables(Random &random, int random_count);

// The symbols that have a frequency.
std::vector<uint8_t> symbols_of(const nz::ByteTable &table);

}  // namespace nz_test

#endif
