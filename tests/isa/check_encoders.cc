// Encoding, and encoding followed by decoding.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "guarded.h"
#include "rans.h"

namespace nz_test {
namespace {

using nz::Kernels;
using nz::kLanes;
using nz::kScalarKernels;

// Encodes with both, onto words that are already there, alone and beside another stream. `room` below what
// the scalar loop places is all that may be written.
template <typename Table, typename Encode>
void check_encode(const char *what, Encode tested, Encode scalar, const Table &table,
                  const nz::EncodeStream &from, const uint8_t *symbols, size_t steps, uint64_t number) {
  constexpr size_t kRoom = 64, kLater = 48;
  Guarded input(kLanes * steps);
  if (input.size) std::memcpy(input.data, symbols, input.size);
  std::vector<uint8_t> plenty(nz::kStepWords * (steps + 1) + kLater, 0x5a);
  const Table *const tables[] = {&table, &table};
  nz::EncodeStream b = from;
  b.symbols = input.data;
  b.next = plenty.data() + plenty.size() - kLater;
  nz::EncodeStream *const of_scalar = &b;
  scalar(tables, &of_scalar, 1, steps);
  const size_t placed = plenty.size() - kLater - static_cast<size_t>(b.next - plenty.data());
  for (int count = 1; count <= nz::kEncodeInterleave; count++) {
    Guarded words0(kRoom + placed + kLater, Guarded::kBegin, 0x5a);
    Guarded words1(kRoom + placed + kLater, Guarded::kBegin, 0x5a);
    Guarded *const words[] = {&words0, &words1};
    nz::EncodeStream a[] = {from, from};
    nz::EncodeStream *const streams[] = {&a[0], &a[1]};
    for (int k = 0; k < count; k++) a[k].symbols = input.data, a[k].next = words[k]->end() - kLater;
    tested(tables, streams, count, steps);
    for (int k = 0; k < count; k++)
      check(a[k].next == words[k]->data + kRoom && equal(a[k].next, b.next, placed + kLater) &&
                equal(a[k].state, b.state, sizeof b.state),
            what, number, steps);
  }
}

// Two streams with tables and symbols of their own.
template <typename Table, typename Encode>
void check_pair(const char *what, Encode tested, const Table *const *tables,
                const std::vector<uint8_t> *alphabets, Random &random) {
  constexpr size_t kSteps = 40;
  std::vector<uint8_t> symbols[2], words[2][2];
  nz::EncodeStream alone[2], beside[2];
  for (int k = 0; k < 2; k++) {
    for (size_t i = 0; i < kLanes * kSteps; i++)
      symbols[k].push_back(alphabets[k][below(random, alphabets[k].size())]);
    for (uint32_t &x : alone[k].state) x = state_of(random, kValid);
    alone[k].symbols = symbols[k].data();
    beside[k] = alone[k];
    for (int pair = 0; pair < 2; pair++) words[pair][k].assign(nz::kStepWords * (kSteps + 2), 0);
    alone[k].next = words[0][k].data() + words[0][k].size();
    beside[k].next = words[1][k].data() + words[1][k].size();
    nz::EncodeStream *const one = &alone[k];
    tested(tables + k, &one, 1, kSteps);
  }
  nz::EncodeStream *const both[] = {&beside[0], &beside[1]};
  tested(tables, both, 2, kSteps);
  for (int k = 0; k < 2; k++) {
    const size_t placed = static_cast<size_t>(words[0][k].data() + words[0][k].size() - alone[k].next);
    const size_t beside_placed =
        static_cast<size_t>(words[1][k].data() + words[1][k].size() - beside[k].next);
    check(placed == beside_placed && equal(alone[k].next, beside[k].next, placed) &&
              equal(alone[k].state, beside[k].state, sizeof alone[k].state),
          what, static_cast<uint64_t>(k), kSteps);
  }
}

// States where dividing by an approximate reciprocal would go wrong first: around multiples of the frequency,
// and around the bound above which a word leaves the state.
uint32_t adversarial_state(Random &random, uint32_t frequency, int bits) {
  const uint64_t bound = uint64_t{frequency} << (32 - bits);
  const uint64_t quotient = 1 + random() % (uint64_t{1} << (32 - bits));
  uint64_t x = 0;
  switch (random() % 6) {
    case 0:
      x = quotient * frequency;
      break;
    case 1:
      x = quotient * frequency - 1;
      break;
    case 2:
      x = bound - 1 - random() % 3;
      break;
    case 3:
      x = bound + random() % 3;
      break;
    case 4:
      x = (quotient * frequency - random() % 2) << 16 | (random() & 0xffff);
      break;
    default:
      x = random();
  }
  return x < nz::kLow || x > 0xffffffff ? nz::kLow + static_cast<uint32_t>(x % 0xffff0000)
                                        : static_cast<uint32_t>(x);
}

template <typename Table, typename Encode>
void check_encoder(const char *what, Encode tested, Encode scalar, const Table &table, int bits,
                   const std::vector<uint8_t> &alphabet, Random &random, int rounds, uint64_t number) {
  std::vector<uint8_t> symbols(64 * kLanes);
  for (size_t steps : kSteps)
    for (int kind : {kValid, kLowest, kHighest}) {
      for (uint8_t &s : symbols) s = alphabet[below(random, alphabet.size())];
      nz::EncodeStream from;
      for (uint32_t &x : from.state) x = state_of(random, static_cast<StateKind>(kind));
      check_encode(what, tested, scalar, table, from, symbols.data(), steps, number);
    }
  for (int round = 0; round < rounds; round++) {
    nz::EncodeStream from;
    for (int lane = 0; lane < kLanes; lane++) {
      symbols[static_cast<size_t>(lane)] = alphabet[below(random, alphabet.size())];
      const uint32_t f = table.frequency[symbols[static_cast<size_t>(lane)]];
      from.state[lane] = adversarial_state(random, f, bits);
    }
    check_encode(what, tested, scalar, table, from, symbols.data(), 1, number);
  }
}

std::vector<uint8_t> ranks_of(const nz::RankTable &table) {
  std::vector<uint8_t> ranks;
  for (int r = 0; r < table.ranks; r++) ranks.push_back(static_cast<uint8_t>(r));
  return ranks;
}

// What one of the loops encodes, the other decodes.
void check_inverse(const Kernels &encoder, const Kernels &decoder, const nz::RankTable &ranks,
                   const nz::ByteTable &bytes, Random &random) {
  constexpr size_t kN = 64 * kLanes;
  uint8_t ranked[kN], plane[kN], decoded[kN];
  std::vector<uint8_t> words(2 * (kN + 128));
  const auto turn = [&](const auto &table, auto encode, auto decode, const uint8_t *symbols,
                        const char *what) {
    nz::EncodeStream e;
    for (uint32_t &x : e.state) x = nz::kLow | below(random, 65536);
    nz::DecodeStream d;
    uint32_t before[kLanes];
    std::memcpy(before, e.state, sizeof before);
    e.next = words.data() + words.size() - 2 * nz::kStepWords;
    const uint8_t *const end = e.next;
    e.symbols = symbols;
    const auto *const tables = &table;
    nz::EncodeStream *const encoded = &e;
    encode(&tables, &encoded, 1, 64);
    std::memcpy(d.state, e.state, sizeof d.state);
    d.next = e.next;
    d.symbols = decoded;
    nz::DecodeStream *const stream = &d;
    decode(&tables, &stream, 1, 64);
    check(equal(decoded, plane, kN) && equal(d.state, before, sizeof before) && d.next == end, what);
  };
  for (size_t i = 0; i < kN; i++) {
    ranked[i] = static_cast<uint8_t>(below(random, static_cast<uint64_t>(ranks.ranks)));
    plane[i] = ranks.symbol[ranked[i]];
  }
  turn(ranks, encoder.encode_rank, decoder.decode_rank, ranked, "decode_rank of encode_rank");
  const std::vector<uint8_t> alphabet = symbols_of(bytes);
  for (uint8_t &s : plane) s = alphabet[below(random, alphabet.size())];
  turn(bytes, encoder.encode_byte, decoder.decode_byte, plane, "decode_byte of encode_byte");
}

void check_to_ranks(const Kernels &tested, const nz::RankTable &table, uint64_t number, Random &random) {
  for (size_t n = 0; n < 300; n += n < 140 ? 1 : 17)
    for (int missing = 0; missing < 3; missing++) {
      Guarded in(n), out(n), expected(n);
      for (size_t i = 0; i < n; i++)
        in.data[i] = missing == 2 ? static_cast<uint8_t>(random())
                                  : table.symbol[below(random, static_cast<uint64_t>(table.ranks))];
      if (missing == 1 && n) {  // exactly one, anywhere
        uint8_t stranger = 0;
        while (table.rank_of[stranger] != nz::kMissing) stranger++;
        in.data[below(random, n)] = stranger;
      }
      const bool a = tested.to_ranks(table, in.data, out.data, n);
      const bool b = kScalarKernels.to_ranks(table, in.data, expected.data, n);
      check(a == b && equal(out.data, expected.data, n), "to_ranks", number, n);
    }
}

// Of a table of `count` symbols.
void check_find_missing(const Kernels &tested, size_t count, Random &random) {
  const int share = 4096 / static_cast<int>(count);
  std::vector<int> frequencies(count, share);
  frequencies[0] = 4096 - share * static_cast<int>(count - 1);
  const nz::ByteTable table = byte_table(random, 12, frequencies);
  const std::vector<uint8_t> present = symbols_of(table);
  for (size_t n = 0; n < 300; n += n < 140 ? 1 : 17) {
    Guarded in(n);
    const auto found = [&](size_t first) {
      check(tested.find_missing(table, in.data, n) == first, "find_missing", count, n);
    };
    for (size_t i = 0; i < n; i++) in.data[i] = present[below(random, count)];
    found(n);
    for (int symbol = 0; n && symbol < 256; symbol++) {  // each alone, anywhere
      const size_t at = below(random, n);
      const uint8_t before = in.data[at];
      in.data[at] = static_cast<uint8_t>(symbol);
      found(table.frequency[symbol] ? n : at);
      in.data[at] = before;
    }
    fill(random, in.data, n);
    size_t first = 0;
    while (first < n && table.frequency[in.data[first]]) first++;
    found(first);
  }
}

// What byte tables are encoded with instead of divisions, for every frequency there is.
void check_quotients(Random &random) {
  for (int bits = 12; bits <= nz::kMaxByteBits; bits++)
    for (int f = 1; f <= 4095; f++) {
      std::vector<int> frequencies{f};
      for (int left = (1 << bits) - f; left > 0; left -= frequencies.back())
        frequencies.push_back(std::min(left, 4095));
      const nz::ByteTable table = byte_table(random, bits, frequencies);
      int symbol = 0;
      while (table.frequency[symbol] != f) symbol++;
      const nz::ByteCode &code = table.code[symbol];
      const uint32_t quotients = 1u << (32 - bits), divisor = static_cast<uint32_t>(f);
      for (int i = 0; i < 12; i++) {
        const uint32_t q = i < 2 ? i : i < 4 ? quotients - 1 - (i - 2) : below(random, quotients);
        for (const uint32_t r : {uint32_t{0}, divisor - 1}) {
          const uint64_t x = uint64_t{q} * divisor + r + code.round;
          check(x * code.reciprocal >> 32 >> code.shift == q, "quotient", divisor, q);
        }
      }
    }
}

}  // namespace

void check_encoders(const Kernels &tested, Random &random) {
  const std::vector<nz::RankTable> ranks = rank_tables(random, 20);
  const std::vector<nz::ByteTable> bytes = byte_tables(random, 9);
  for (size_t t = 0; t < ranks.size(); t++)
    check_encoder("encode_rank", tested.encode_rank, kScalarKernels.encode_rank, ranks[t], 16,
                  ranks_of(ranks[t]), random, 20, t);
  for (size_t t = 0; t < bytes.size(); t++)
    check_encoder("encode_byte", tested.encode_byte, kScalarKernels.encode_byte, bytes[t], bytes[t].bits,
                  symbols_of(bytes[t]), random, 20, t);
  for (size_t t = 0; t + 1 < ranks.size(); t++) {
    const nz::RankTable *const tables[] = {&ranks[t], &ranks[t + 1]};
    const std::vector<uint8_t> alphabets[] = {ranks_of(ranks[t]), ranks_of(ranks[t + 1])};
    check_pair("encode_rank of two", tested.encode_rank, tables, alphabets, random);
  }
  for (size_t t = 0; t + 1 < bytes.size(); t++) {
    const nz::ByteTable *const tables[] = {&bytes[t], &bytes[t + 1]};
    const std::vector<uint8_t> alphabets[] = {symbols_of(bytes[t]), symbols_of(bytes[t + 1])};
    check_pair("encode_byte of two", tested.encode_byte, tables, alphabets, random);
  }
  if (&tested == &kScalarKernels) check_quotients(random);  // of the tables, whatever the loops
  // Every frequency there is.
  for (int w = 1; w < 255; w++) {
    const nz::RankTable table = rank_table(random, {w, 255 - w}, {1 + w % 15, 15 - w % 15});
    check_encoder("encode_rank", tested.encode_rank, kScalarKernels.encode_rank, table, 16, ranks_of(table),
                  random, 8, static_cast<uint64_t>(w));
  }
  for (int f = 1; f <= 4095; f++) {
    const nz::ByteTable table = byte_table(random, 12, {f, 4096 - f});
    std::vector<uint8_t> symbols(kLanes, symbols_of(table)[0]);
    nz::EncodeStream from;
    for (uint32_t &x : from.state) x = adversarial_state(random, static_cast<uint32_t>(f), 12);
    check_encode("encode_byte", tested.encode_byte, kScalarKernels.encode_byte, table, from, symbols.data(),
                 1, static_cast<uint64_t>(f));
  }
}

void check_inverses(const Kernels &tested, Random &random) {
  const std::vector<nz::RankTable> ranks = rank_tables(random, 20);
  const std::vector<nz::ByteTable> bytes = byte_tables(random, 9);
  for (size_t t = 0; t < ranks.size(); t++) {
    check_inverse(tested, kScalarKernels, ranks[t], bytes[t % bytes.size()], random);
    check_inverse(kScalarKernels, tested, ranks[t], bytes[t % bytes.size()], random);
  }
}

void check_symbols(const Kernels &tested, Random &random) {
  uint64_t number = 0;
  for (const nz::RankTable &table : rank_tables(random, 0)) check_to_ranks(tested, table, number++, random);
  for (size_t count : {2, 16, 128, 128, 128, 128, 240, 255, 256}) check_find_missing(tested, count, random);
}

}  // namespace nz_test
