// Original bytes to a chunk (§4), by one warp: the bytes that csrc/chunk_encode.cc writes. Planes are read
// out of the units wherever they are needed, so that nothing is kept of them.
#ifndef NEUZIP_CUDA_ENCODE_H
#define NEUZIP_CUDA_ENCODE_H

#include "frequencies.cuh"
#include "split.cuh"

namespace nz {

constexpr uint32_t kMinJoint = 2 * 128;   // units
constexpr uint32_t kMinSampled = 512;     // units of a plane that may have a table of its own
constexpr uint32_t kSparseSample = 8192;  // units from which on only every eighth is sampled

// What a warp keeps from one chunk to the next, and its shared memory.
struct EncodeShared {
  Frequencies table;
  uint32_t histogram[kSymbols];
};
struct EncodeBench {
  EncodeShared *shared;
  const uint8_t *table;  // what the table there was loaded from, null if not from a blob
};

// Plane 0 and the two high bits of plane 1 as a symbol of a joint table (§4.6).
template <int W>
struct Head {
  typedef typename UnitOf<W>::Type Type;
  static constexpr uint32_t kPatchBytes = 4;
  const Type *units;
  uint32_t first;  // the head of symbol 0

  __device__ __forceinline__ uint32_t value(Type unit) const {
    return static_cast<uint32_t>(rotate<W>(unit) >> (8 * W - 10));
  }
  __device__ __forceinline__ uint32_t symbol(Type unit) const { return min(value(unit) - first, kNoSymbol); }
};

// A chunk being written into a slot, sections in file order. All lanes hold the same.
class ChunkWriter {
 public:
  __device__ __forceinline__ ChunkWriter(uint8_t *slot, uint32_t width)
      : slot_(slot), at_(kRecordBytes * width) {}

  __device__ __forceinline__ void record(int plane, uint32_t mode, uint32_t param, uint32_t patches,
                                         uint32_t words) {
    if (lane_id() != 0) return;
    uint32_t *const r = reinterpret_cast<uint32_t *>(slot_ + kRecordBytes * plane);
    r[0] = mode | param << 8 | patches << 16;
    r[1] = words;
  }
  __device__ __forceinline__ void align() {
    const uint32_t padding = (4 - at_ % 4) % 4;
    if (lane_id() < padding) slot_[at_ + lane_id()] = 0;
    at_ += padding;
  }
  __device__ __forceinline__ uint8_t *at() const { return slot_ + at_; }
  __device__ __forceinline__ void skip(uint32_t n) { at_ += n; }
  __device__ __forceinline__ void drop(uint32_t n) { at_ -= n; }
  __device__ __forceinline__ uint32_t size() const { return at_; }

 private:
  uint8_t *slot_;
  uint32_t at_;
};

// A stream that has been encoded: the lane's last state; the words lie before the end of the slot.
struct Coded {
  uint32_t state, words, patches;
};

// Encodes symbols from the last to the first, lane l beginning at 2^16 | payload. Words are placed from `end`
// downwards. False as soon as states, words and patches are `limit` bytes.
template <typename Symbols>
__device__ __forceinline__ bool encode_stream(const Symbols &symbols, const Frequencies &table,
                                              uint32_t units, uint32_t payload, uint32_t limit, uint16_t *end,
                                              Coded *coded) {
  const uint32_t lane = lane_id(), lower = (1u << lane) - 1, bits = table.bits, fill = table.fill;
  uint32_t x = kLow | payload, words = 0, patches = 0;
  uint32_t i = (units - 1) / kWarp * kWarp + lane;
  typename Symbols::Type unit = i < units ? __ldg(symbols.units + i) : 0;
#pragma unroll 1
  for (; kStateBytes + 2 * words + Symbols::kPatchBytes * patches < limit; i -= kWarp) {
    const bool active = i < units;
    uint32_t entry = table.entries[symbols.symbol(unit)];
    const bool last = i < kWarp;
    if (!last) unit = __ldg(symbols.units + i - kWarp);  // on its way while this one is encoded
    patches += __popc(__ballot_sync(kAll, active && !entry));
    if (!entry) entry = fill;
    const uint32_t frequency = entry & 0xffff;
    const bool full = active && x >> (32 - bits) >= frequency;
    const uint32_t all = __ballot_sync(kAll, full);
    words += __popc(all);
    if (full) {
      *(end - words + __popc(all & lower)) = static_cast<uint16_t>(x);
      x >>= 16;
    }
    const uint32_t quotient = x / frequency;
    if (active) x = (quotient << bits) + (entry >> 16) + x - quotient * frequency;
    if (!last) continue;
    *coded = {x, words, patches};
    return kStateBytes + 2 * words + Symbols::kPatchBytes * patches < limit;
  }
  return false;
}

// The patches (§4.4) of all symbols that have no frequency.
template <typename Symbols>
__device__ __forceinline__ void write_patches(const Symbols &symbols, const Frequencies &table,
                                              uint32_t units, uint8_t *to) {
  const uint32_t lower = (1u << lane_id()) - 1;
#pragma unroll 1
  for (uint32_t i = lane_id(); i - lane_id() < units; i += kWarp) {
    const typename Symbols::Type unit = i < units ? __ldg(symbols.units + i) : 0;
    const bool missing = i < units && !table.entries[symbols.symbol(unit)];
    const uint32_t all = __ballot_sync(kAll, missing);
    if (missing) {
      uint8_t *const patch = to + Symbols::kPatchBytes * __popc(all & lower);
      const uint32_t value = symbols.value(unit);
      patch[0] = static_cast<uint8_t>(i);
      patch[1] = static_cast<uint8_t>(i >> 8);
      patch[2] = static_cast<uint8_t>(value);
      if (Symbols::kPatchBytes == 4) patch[3] = static_cast<uint8_t>(value >> 8);
    }
    to += Symbols::kPatchBytes * __popc(all);
  }
}

// States, words and patches to where the writer is.
template <typename Symbols>
__device__ __forceinline__ void append_stream(const Symbols &symbols, const Frequencies &table,
                                              uint32_t units, const Coded &coded, const uint16_t *end,
                                              ChunkWriter *writer) {
  reinterpret_cast<uint32_t *>(writer->at())[lane_id()] = coded.state;
  writer->skip(kStateBytes);
  uint16_t *const to = reinterpret_cast<uint16_t *>(writer->at());
  const uint16_t *const from = end - coded.words;
  __syncwarp();
  // They move towards lower addresses, so what is overwritten has been read.
#pragma unroll 1
  for (uint32_t i = lane_id(); i - lane_id() < coded.words; i += kWarp) {
    const uint16_t word = i < coded.words ? from[i] : 0;
    __syncwarp();
    if (i < coded.words) to[i] = word;
    __syncwarp();
  }
  writer->skip(2 * coded.words);
  if (coded.patches) write_patches(symbols, table, units, writer->at());
  writer->skip(Symbols::kPatchBytes * coded.patches);
}

template <int W>
__device__ __forceinline__ bool is_constant(const Plane<W> &plane, uint32_t units) {
  const uint32_t first = plane.at(0);
#pragma unroll 1
  for (uint32_t i = lane_id(); i - lane_id() < units; i += kWarp)
    if (!__all_sync(kAll, i >= units || plane.at(i) == first)) return false;
  return true;
}

// A chunk to encode, and where to.
template <int W>
struct EncodeTask {
  typedef typename UnitOf<W>::Type Type;
  const Type *original;
  uint32_t units;
  uint32_t kind;         // of the tensor's tables
  const uint8_t *entry;  // the chunk's table's, in the blob
  uint16_t *end;         // of the slot
};

// Mode local: a table of the plane's own. False if it does not pay.
template <int W>
__device__ __forceinline__ bool encode_local(const EncodeTask<W> &task, const Plane<W> &plane,
                                             EncodeBench *bench, ChunkWriter *writer) {
  const uint32_t units = task.units;
  uint32_t *const histogram = bench->shared->histogram;
  Frequencies *const table = &bench->shared->table;
  if (units < kMinSampled) return false;
  count_bytes(plane, units, units < kSparseSample ? 64 : 512, histogram);
  if (!may_compress(histogram)) return false;
  if (units >= kSparseSample) count_bytes(plane, units, 64, histogram);
  bench->table = nullptr;
  share_out(histogram, units, table);
  const uint32_t count = count_symbols(histogram), used = kByteTableHeader + 2 * count;
  if (used + kStateBytes + cost_bits(histogram, *table) / 8 + units / 100 >= units) return false;
  store_local_table(*table, count, writer->at());
  complete_table(kLocalBits, table);
  Coded coded;
  const bool pays = encode_stream(plane, *table, units, 0, units - used, task.end, &coded);
  __syncwarp();  // the table is written, before others write over it
  if (!pays) return false;
  writer->record(plane.p, kLocal, 0, 0, coded.words);
  writer->skip(used);
  writer->align();
  append_stream(plane, *table, units, coded, task.end, writer);
  return true;
}

// A plane without the frame's table: constant, local or raw. Returns the mode.
template <int W>
__device__ __forceinline__ uint32_t encode_plain(const EncodeTask<W> &task, int p, EncodeBench *bench,
                                                 ChunkWriter *writer) {
  const Plane<W> plane = {task.original, p};
  writer->align();
  if (is_constant(plane, task.units)) {
    writer->record(p, kConstant, plane.at(0), 0, 0);
    return kConstant;
  }
  if (encode_local(task, plane, bench, writer)) return kLocal;
  writer->record(p, kRaw, 0, 0, 0);
#pragma unroll 4
  for (uint32_t i = lane_id(); i < task.units; i += kWarp)
    writer->at()[i] = static_cast<uint8_t>(plane.at(i));
  writer->skip(task.units);
  return kRaw;
}

// The low six bits of plane 1 (§4.6), payload included, to `section`.
template <int W>
__device__ __forceinline__ void pack_six(const EncodeTask<W> &task, uint8_t *section) {
  const Plane<W> plane1 = {task.original, 1};
#pragma unroll 1
  for (uint32_t i = lane_id(); i - lane_id() < task.units; i += 128) {
    uint32_t q[4];
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) q[k] = i + 32 * k < task.units ? plane1.at(i + 32 * k) & 63 : 0;
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
      section[32 * k + lane_id()] = static_cast<uint8_t>(q[k] | q[3] >> 2 * k << 6);
    section += 96;
  }
}

// The two bytes of a payload that are this lane's. The 64 bytes have just been written before `end`.
__device__ __forceinline__ uint32_t payload_before(const uint8_t *end) {
  __syncwarp();
  const uint8_t *const pair = end - kPayloadBytes + 2 * lane_id();
  const uint32_t payload = pair[0] | static_cast<uint32_t>(pair[1]) << 8;
  __syncwarp();  // every lane has read before the bytes are overwritten
  return payload;
}

// Brings the chunk's table into shared memory, if it is not there.
__device__ __forceinline__ const Frequencies &load_frequencies(const uint8_t *entry, uint32_t kind,
                                                               EncodeBench *bench) {
  Frequencies *const table = &bench->shared->table;
  if (bench->table != entry) {
    if (kind == kRankTable)
      load_rank_frequencies(entry + kEntryHeader, table);
    else
      load_byte_frequencies(entry + kEntryHeader, table);
    bench->table = entry;
  }
  return *table;
}

// Planes 1 and 0 in modes six and joint. False, and nothing written, if that does not pay.
template <int W>
__device__ __forceinline__ bool encode_joint(const EncodeTask<W> &task, EncodeBench *bench,
                                             ChunkWriter *writer) {
  const Frequencies &table = load_frequencies(task.entry, task.kind, bench);
  const Head<W> head = {task.original, 4u * __ldg(task.entry + 4)};
  ChunkWriter after = *writer;
  after.align();
  pack_six(task, after.at());
  after.skip(six_bytes(task.units));
  const uint32_t payload = payload_before(after.at());
  after.drop(kPayloadBytes);
  const uint32_t limit = 2 * task.units - (six_bytes(task.units) - kPayloadBytes);
  Coded coded;
  if (!encode_stream(head, table, task.units, payload, limit, task.end, &coded)) return false;
  *writer = after;
  writer->record(1, kSix, 0, 0, 0);
  writer->align();
  writer->record(0, kJoint, 0, coded.patches, coded.words);
  append_stream(head, table, task.units, coded, task.end, writer);
  return true;
}

// Plane 0 with the frame's rank or byte table; `carries` says whether the bytes before the writer may be its
// stream's payload. False, and nothing written, if that does not pay.
template <int W>
__device__ __forceinline__ bool encode_plane0(const EncodeTask<W> &task, bool carries, EncodeBench *bench,
                                              ChunkWriter *writer) {
  const Frequencies &table = load_frequencies(task.entry, task.kind, bench);
  const Plane<W> plane0 = {task.original, 0};
  const uint32_t payload = carries ? payload_before(writer->at()) : 0;
  Coded coded;
  if (!encode_stream(plane0, table, task.units, payload, task.units, task.end, &coded)) return false;
  if (carries) writer->drop(kPayloadBytes);
  writer->align();
  writer->record(0, task.kind == kRankTable ? kRank : kByte, 0, coded.patches, coded.words);
  append_stream(plane0, table, task.units, coded, task.end, writer);
  return true;
}

// Encodes a chunk into its slot, aligned to 4; returns its size.
template <int W>
__device__ __forceinline__ uint32_t encode_chunk(const EncodeTask<W> &task, uint8_t *slot,
                                                 EncodeBench *bench) {
  ChunkWriter writer(slot, W);
  const bool coded = task.kind != kNoTable && !is_constant(Plane<W>{task.original, 0}, task.units);
  bool carries = false;
#pragma unroll 1
  for (int p = W - 1; p >= 0; p--) {
    if constexpr (W == 2 || W == 4) {
      const bool joint = coded && task.kind == kJointTable && task.units >= kMinJoint;
      if (p == 1 && joint && encode_joint(task, bench, &writer)) break;
    }
    if (p == 0 && coded && task.kind != kJointTable && encode_plane0(task, carries, bench, &writer)) break;
    const uint32_t mode = encode_plain(task, p, bench, &writer);
    carries = p == 1 && mode == kRaw && task.units >= kPayloadBytes;
  }
  writer.align();
  return writer.size();
}

}  // namespace nz

#endif
