// Decoding any words from any states, with every table.
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

constexpr int kCounts[] = {1, 2, 4};

// Decodes random words from states of one kind on `count` streams with both. The streams share table
// `number`, or have it and those that follow.
template <typename Table, typename Decode>
void check_decode(const char *what, Decode tested, Decode scalar, const std::vector<Table> &tables,
                  bool share, Random &random, int count, size_t steps, StateKind kind, uint64_t number) {
  const size_t offset = below(random, 4);  // words need not be aligned
  nz::DecodeStream a[nz::kMaxInterleave], b[nz::kMaxInterleave];
  nz::DecodeStream *streams_a[nz::kMaxInterleave], *streams_b[nz::kMaxInterleave];
  const Table *table[nz::kMaxInterleave];
  std::vector<std::unique_ptr<Guarded>> words, out_a, out_b;
  for (int k = 0; k < count; k++) {
    table[k] = &tables[(number + (share ? 0 : static_cast<size_t>(k))) % tables.size()];
    streams_a[k] = &a[k], streams_b[k] = &b[k];
    words.push_back(std::make_unique<Guarded>(nz::kStepWords * (steps + 1) + offset));
    fill(random, words[k]->data, words[k]->size);
    for (uint32_t &x : a[k].state) x = state_of(random, kind);
    a[k].next = words[k]->data;
    a[k].reads = a[k].writes = random();  // fetched, and so of no consequence
    a[k].write_width = below(random, 5);
    b[k] = a[k];
    out_a.push_back(std::make_unique<Guarded>(kLanes * steps));
    out_b.push_back(std::make_unique<Guarded>(kLanes * steps));
    a[k].symbols = out_a[k]->data, b[k].symbols = out_b[k]->data;
  }
  tested(table, streams_a, count, steps);
  scalar(table, streams_b, count, steps);
  for (int k = 0; k < count; k++)
    check(equal(a[k].state, b[k].state, sizeof a[k].state) && a[k].next == b[k].next &&
              equal(a[k].symbols, b[k].symbols, kLanes * steps),
          what, number, steps);
}

// Every slot of a table, at both ends of the upper half of the state.
void check_all_slots(const Kernels &tested, const nz::RankTable &table, uint64_t number) {
  Guarded words(2 * nz::kStepWords), out_a(kLanes), out_b(kLanes);
  for (uint32_t slot = 0; slot < 65536; slot += kLanes) {
    nz::DecodeStream a, b;
    for (uint32_t i = 0; i < kLanes; i++)
      a.state[i] = (slot + i) | ((slot / kLanes + i) % 3 == 0 ? 1u : 0xffffu) << 16;
    a.next = words.data;
    b = a;
    a.symbols = out_a.data, b.symbols = out_b.data;
    const nz::RankTable *const tables = &table;
    nz::DecodeStream *const of_tested = &a, *const of_scalar = &b;
    tested.decode_rank(&tables, &of_tested, 1, 1);
    kScalarKernels.decode_rank(&tables, &of_scalar, 1, 1);
    check(
        equal(a.state, b.state, sizeof a.state) && a.next == b.next && equal(out_a.data, out_b.data, kLanes),
        "decode_rank of every slot", number, slot);
  }
}

}  // namespace

void check_decoders(const Kernels &tested, Random &random) {
  const std::vector<nz::RankTable> ranks = rank_tables(random, 20);
  const std::vector<nz::ByteTable> bytes = byte_tables(random, 9);
  for (size_t t = 0; t < ranks.size(); t++) check_all_slots(tested, ranks[t], t);
  for (int kind = 0; kind < kStateKinds; kind++)
    for (int count : kCounts)
      for (size_t steps : kSteps) {
        const auto state = static_cast<StateKind>(kind);
        for (size_t t = 0; t < ranks.size(); t++)
          check_decode("decode_rank", tested.decode_rank, kScalarKernels.decode_rank, ranks, t % 2, random,
                       count, steps, state, t);
        for (size_t t = 0; t < bytes.size(); t++)
          check_decode("decode_byte", tested.decode_byte, kScalarKernels.decode_byte, bytes, t % 2, random,
                       count, steps, state, t);
      }
}

}  // namespace nz_test
