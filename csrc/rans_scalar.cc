// The loops for any processor, and the ones all others are compared with.
#include "planes.h"
#include "rans.h"

namespace nz {
namespace {

void decode_rank(const RankTable *const *tables, DecodeStream *const *streams, int count, size_t steps) {
  for (int k = 0; k < count; k++)
    for (size_t s = 0; s < steps; s++)
      for (int lane = 0; lane < kLanes; lane++)
        streams[k]->symbols[s * kLanes + lane] = get_rank(*tables[k], streams[k], lane);
}

void decode_byte(const ByteTable *const *tables, DecodeStream *const *streams, int count, size_t steps) {
  for (int k = 0; k < count; k++)
    for (size_t s = 0; s < steps; s++)
      for (int lane = 0; lane < kLanes; lane++)
        streams[k]->symbols[s * kLanes + lane] = get_byte(*tables[k], streams[k], lane);
}

void encode_rank(const RankTable *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  for (int k = 0; k < count; k++)
    for (size_t s = steps; s-- > 0;)
      for (int lane = kLanes; lane-- > 0;)
        put_rank(*tables[k], streams[k], lane, streams[k]->symbols[s * kLanes + lane]);
}

void encode_byte(const ByteTable *const *tables, EncodeStream *const *streams, int count, size_t steps) {
  for (int k = 0; k < count; k++)
    for (size_t s = steps; s-- > 0;)
      for (int lane = kLanes; lane-- > 0;)
        put_byte(*tables[k], streams[k], lane, streams[k]->symbols[s * kLanes + lane]);
}

bool to_ranks(const RankTable &table, const uint8_t *symbols, uint8_t *ranks, size_t n) {
  bool missing = false;
  for (size_t i = 0; i < n; i++) {
    ranks[i] = table.rank_of[symbols[i]];
    missing |= ranks[i] == kMissing;
  }
  return missing;
}

size_t find_missing(const ByteTable &table, const uint8_t *symbols, size_t n) {
  size_t i = 0;
  while (i < n && table.frequency[symbols[i]]) i++;
  return i;
}

}  // namespace

constexpr Kernels kScalarKernels =
    with_planes({"scalar", 1, 1, decode_rank, decode_byte, encode_rank, encode_byte, to_ranks, find_missing});

}  // namespace nz
