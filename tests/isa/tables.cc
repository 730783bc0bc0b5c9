#include "tables.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace nz_test {
namespace {

void shuffle(Random &random, std::vector<int> &v) {
  for (size_t i = v.size(); i > 1; i--) std::swap(v[i - 1], v[below(random, i)]);
}

std::vector<int> all_bytes_shuffled(Random &random) {
  std::vector<int> v(256);
  std::iota(v.begin(), v.end(), 0);
  shuffle(random, v);
  return v;
}

[[noreturn]] void bad_table(const char *kind) {
  std::fprintf(stderr, "the tests made a %s table that the library refuses\n", kind);
  std::exit(2);
}

// Distances between sorted boundaries in 0 … total.
std::vector<int> weights_between(std::vector<int> boundaries, int total) {
  std::sort(boundaries.begin(), boundaries.end());
  boundaries.push_back(total);
  std::vector<int> weights;
  int before = 0;
  for (int b : boundaries) weights.push_back(b - before), before = b;
  return weights;
}

// `parts` weights of at least 1 that sum to `total`; if `bucketed`, no two boundaries lie inside one group of
// four but the last (the bucket rule of §4.2).
std::vector<int> random_weights(Random &random, int parts, int total, bool bucketed) {
  std::vector<int> candidates(static_cast<size_t>(total - 1));
  std::iota(candidates.begin(), candidates.end(), 1);
  shuffle(random, candidates);
  std::vector<int> boundaries;
  std::vector<bool> taken(64);
  for (int b : candidates) {
    if (static_cast<int>(boundaries.size()) == parts - 1) break;
    const size_t bucket = static_cast<size_t>(b / 4);
    if (bucketed && b % 4 && bucket < 63) {
      if (taken[bucket]) continue;
      taken[bucket] = true;
    }
    boundaries.push_back(b);
  }
  return weights_between(boundaries, total);
}

}  // namespace

nz::RankTable rank_table(Random &random, const std::vector<int> &main, const std::vector<int> &fine) {
  uint8_t bytes[nz::kRankTableBytes] = {};
  const std::vector<int> symbols = all_bytes_shuffled(random);
  bytes[0] = static_cast<uint8_t>(main.size() + fine.size());
  bytes[1] = static_cast<uint8_t>(main.size());
  std::vector<int> weights = main;
  weights.insert(weights.end(), fine.begin(), fine.end());
  for (size_t i = 0; i < weights.size(); i++) {
    bytes[4 + i] = static_cast<uint8_t>(symbols[i]);
    bytes[20 + i] = static_cast<uint8_t>(weights[i]);
  }
  nz::RankTable table;
  if (!nz::read_rank_table(bytes, &table)) bad_table("rank");
  return table;
}

nz::ByteTable byte_table(Random &random, int bits, const std::vector<int> &frequencies) {
  std::vector<int> symbols = all_bytes_shuffled(random);
  symbols.resize(frequencies.size());
  std::sort(symbols.begin(), symbols.end());
  std::vector<uint8_t> bytes(nz::kByteTableHeader);
  bytes[0] = static_cast<uint8_t>(bits);
  bytes[2] = static_cast<uint8_t>(frequencies.size());
  bytes[3] = static_cast<uint8_t>(frequencies.size() >> 8);
  for (int s : symbols) bytes[static_cast<size_t>(4 + s / 8)] |= static_cast<uint8_t>(1 << s % 8);
  for (int f : frequencies)
    bytes.push_back(static_cast<uint8_t>(f)), bytes.push_back(static_cast<uint8_t>(f >> 8));
  nz::ByteTable table;
  size_t used;
  if (!nz::read_byte_table(bytes.data(), bytes.size(), &table, &used) || used != bytes.size())
    bad_table("byte");
  return table;
}

std::vector<nz::RankTable> rank_tables(Random &random, int random_count) {
  std::vector<int> fine15(15, 1), alternating, narrow(12, 21), wide_first{255 - 14 * 4};
  fine15[3] = 2;
  for (int i = 0; i < 7; i++) alternating.push_back(i % 2 ? 3 : 1), alternating.push_back(i % 2 ? 1 : 3);
  alternating.push_back(255 - 28);
  for (int i = 0; i < 3; i++) narrow.push_back(1);  // boundaries at 252, 253, 254: all in the last bucket
  for (int i = 0; i < 14; i++) wide_first.push_back(4);
  std::vector<int> narrow_first(wide_first.rbegin(), wide_first.rend());
  std::vector<nz::RankTable> tables{rank_table(random, {255}, {16}),
                                    rank_table(random, {255}, fine15),
                                    rank_table(random, alternating, {16}),
                                    rank_table(random, narrow, {16}),
                                    rank_table(random, wide_first, {16}),
                                    rank_table(random, narrow_first, {16}),
                                    rank_table(random, {252, 1, 1, 1}, {1, 2, 3, 1, 1, 1, 1, 1, 1, 1, 1, 2}),
                                    rank_table(random, {253, 1, 1}, {1, 15}),
                                    rank_table(random, {1, 254}, {15, 1}),
                                    rank_table(random, {3, 252}, {8, 8}),
                                    rank_table(random, {254, 1}, {13, 1, 1, 1})};
  for (int i = 0; i < random_count; i++) {
    const int ranks = 2 + static_cast<int>(below(random, 15));
    const int main = 1 + static_cast<int>(below(random, static_cast<uint64_t>(ranks - 1)));
    tables.push_back(rank_table(random, random_weights(random, main, 255, true),
                                random_weights(random, ranks - main, 16, false)));
  }
  return tables;
}

std::vector<nz::ByteTable> byte_tables(Random &random, int random_count) {
  std::vector<nz::ByteTable> tables{byte_table(random, 12, {1, 4095}), byte_table(random, 12, {4095, 1}),
                                    byte_table(random, 13, {4095, 2, 4095}),
                                    byte_table(random, 14, {4095, 4095, 4, 4095, 4095})};
  for (int bits = 12; bits <= 14; bits++) {
    tables.push_back(byte_table(random, bits, std::vector<int>(256, (1 << bits) / 256)));
    std::vector<int> few_ones(255, 1);  // symbols of frequency 1 beside as few others as the sum allows
    int rest = (1 << bits) - 255;
    for (size_t i = 0; rest; i++) {
      const int more = std::min(rest, 4094);
      few_ones[i] += more, rest -= more;
    }
    few_ones.push_back(1), few_ones[10] = 1 << 3, few_ones[0] -= 8;
    tables.push_back(byte_table(random, bits, few_ones));
  }
  for (int i = 0; i < random_count; i++) {
    const int bits = 12 + i % 3;
    const int count =
        i % 2 ? 6 + static_cast<int>(below(random, 10)) : 16 + static_cast<int>(below(random, 241));
    std::vector<int> weights;
    do weights = random_weights(random, count, 1 << bits, false);
    while (*std::max_element(weights.begin(), weights.end()) > 4095);
    tables.push_back(byte_table(random, bits, weights));
  }
  return tables;
}

std::vector<uint8_t> symbols_of(const nz::ByteTable &table) {
  std::vector<uint8_t> symbols;
  for (int s = 0; s < 256; s++)
    if (table.frequency[s]) symbols.push_back(static_cast<uint8_t>(s));
  return symbols;
}

}  // namespace nz_test
