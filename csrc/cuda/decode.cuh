// A chunk to its original bytes, by one warp. Plane by plane in the order of the file: planes of mode local
// are decoded to their places in the units; plane 0 comes last and brings all together.
#ifndef NEUZIP_CUDA_DECODE_H
#define NEUZIP_CUDA_DECODE_H

#include "merge.cuh"

namespace nz {

// A warp's shared memory.
template <int W>
struct Workspace {
  WordRing ring;
  Lookup lookup;
  PlaneBytes planes[W];
};

// What a warp keeps from one chunk to the next.
template <int W>
struct Bench {
  Workspace<W> *shared;
  const uint8_t *table;  // the table in the lookup if it is of a blob, else null
};

// A plane of mode local other than plane 0.
template <int W>
__device__ __forceinline__ uint32_t decode_local(const StreamView &view, Workspace<W> *shared, uint32_t units,
                                                 uint8_t *place) {
  Stream stream(view, &shared->ring);
  if (!stream.begins_well()) return NZ_FAULT_STREAM;
  const ByteTable table = {&shared->lookup, shared->lookup.bits};
#pragma unroll 1
  for (uint32_t i = lane_id(); i - lane_id() < units; i += kWarp) {
    stream.fetch();
    const uint32_t symbol = stream.take(table, i < units);
    if (i < units) place[static_cast<uint64_t>(i) * W] = static_cast<uint8_t>(symbol);
  }
  if (!stream.ends_well(false)) return NZ_FAULT_STREAM;
  __syncwarp();
#pragma unroll 1
  for (uint32_t k = lane_id(); k < view.patch_count; k += kWarp) {
    const uint8_t *const patch = view.patches + 3 * k;
    place[static_cast<uint64_t>(load_bytes2(patch)) * W] = __ldg(patch + 2);
  }
  __syncwarp();
  return NZ_FAULT_NONE;
}

// All units from a stream's symbols. Lane l has units l, 32 + l, …
template <int W, typename Low, typename High, typename Table>
__device__ __forceinline__ void merge_stream(const Low &planes, const High &high, const Table &table,
                                             Stream *stream, uint32_t units, typename UnitOf<W>::Type *out) {
  uint32_t i = lane_id();
  if constexpr (Low::kBatched) {
    constexpr uint32_t kUnits = kBatchUnits<W>;
    const uint32_t whole = planes.whole() / kUnits * kUnits;
#pragma unroll 1
    for (; i < whole; i += kUnits) {
      typename UnitOf<W>::Type lows[kBatch<W>];
      if (i + 2 * kUnits < whole) planes.look_ahead(i - lane_id() + 2 * kUnits);
      planes.load(i, lows);
#pragma unroll
      for (uint32_t j = 0; j < kBatch<W>; j++) {
        if (j % kSteps == 0) stream->fetch();
        out[i + j * kWarp] = high.unit(stream->take(table), lows[j]);
      }
    }
  }
#pragma unroll 1
  for (; i - lane_id() < units; i += kWarp) {
    stream->fetch();
    const uint32_t symbol = stream->take(table, i < units);
    if (i < units) out[i] = high.unit(symbol, planes.low(i));
  }
}

// The payload of a raw plane 1: its last 64 bytes, two from each lane.
template <int W>
__device__ __forceinline__ void add_raw_payload(uint32_t payload, uint32_t units,
                                                typename UnitOf<W>::Type *out) {
  const uint32_t i = units - kPayloadBytes + 2 * lane_id();
  add_plane1<W>(&out[i], payload & 0xff);
  add_plane1<W>(&out[i + 1], payload >> 8);
}

// The payload of a plane 1 in mode six: the last 64 of the last block's 96 bytes (§4.6), of which `first` is
// the address. False if bits of missing units are not 0.
template <int W>
__device__ __forceinline__ bool add_six_payload(uint32_t payload, const uint8_t *first, uint32_t units,
                                                typename UnitOf<W>::Type *out) {
  const uint32_t lane = lane_id(), half = lane % 2 * 8, b0 = __ldg(first + lane);
  const uint32_t b1 = __shfl_sync(kAll, payload, lane / 2) >> half & 0xff;
  const uint32_t b2 = __shfl_sync(kAll, payload, 16 + lane / 2) >> half & 0xff;
  const uint32_t sixes[4] = {b0 & 63, b1 & 63, b2 & 63, b0 >> 6 | b1 >> 6 << 2 | b2 >> 6 << 4};
  bool good = true;
#pragma unroll
  for (uint32_t q = 0; q < 4; q++) {
    const uint32_t i = (units - 1) / 128 * 128 + 32 * q + lane;
    if (i < units)
      add_plane1<W>(&out[i], sixes[q]);  // what was there already changes nothing
    else
      good = good && !sixes[q];
  }
  return __all_sync(kAll, good);
}

// The patches (§4.4) of plane 0, or of the head.
template <int W, bool kJoint>
__device__ __forceinline__ void patch_units(const StreamView &view, typename UnitOf<W>::Type *out) {
#pragma unroll 1
  for (uint32_t k = lane_id(); k < view.patch_count; k += kWarp) {
    const uint8_t *const patch = view.patches + (kJoint ? 4 : 3) * k;
    const uint32_t position = load_bytes2(patch);
    if constexpr (kJoint)
      set_head<W>(&out[position], load_bytes2(patch + 2));
    else
      set_plane0<W>(&out[position], __ldg(patch + 2));
  }
}

// A chunk whose sections have all been found.
struct Sections {
  StreamView stream;    // of plane 0
  const uint8_t *last;  // section of the last plane
  uint32_t mode0;
  bool payload;
  bool raw;  // planes 1 … W − 1 all are
};

template <int W, typename Table>
__device__ __forceinline__ uint32_t merge_coded(const Sections &s, const PlaneBytes *planes,
                                                const Table &table, WordRing *ring, uint32_t units,
                                                typename UnitOf<W>::Type *out) {
  Stream stream(s.stream, ring);
  if (!stream.begins_well()) return NZ_FAULT_STREAM;
  if (W == 1 || s.raw) {
    const RawPlanes<W> raw = {s.last, units, W == 1 ? 0 : planes[W == 1 ? 0 : 1].count};
    merge_stream<W>(raw, Plane0<W>(), table, &stream, units, out);
  } else {
    merge_stream<W>(AnyPlanes<W>{planes}, Plane0<W>(), table, &stream, units, out);
  }
  if (!stream.ends_well(s.payload)) return NZ_FAULT_STREAM;
  __syncwarp();
  if constexpr (W > 1) {
    if (s.payload) add_raw_payload<W>(stream.payload(), units, out);
    __syncwarp();
  }
  patch_units<W, false>(s.stream, out);
  return NZ_FAULT_NONE;
}

// `first` is the head of symbol 0.
template <int W>
__device__ __forceinline__ uint32_t merge_joint(const Sections &s, const PlaneBytes *planes,
                                                const ByteTable &table, uint32_t first, WordRing *ring,
                                                uint32_t units, typename UnitOf<W>::Type *out) {
  Stream stream(s.stream, ring);
  if (!stream.begins_well()) return NZ_FAULT_STREAM;
  merge_stream<W>(SixPlanes<W>{planes, planes[1]}, Heads<W>{first << 6}, table, &stream, units, out);
  if (!stream.ends_well(true)) return NZ_FAULT_STREAM;
  __syncwarp();
  const uint8_t *const last = planes[1].bytes + (units - 1) / 128 * 96;
  if (!add_six_payload<W>(stream.payload(), last, units, out)) return NZ_FAULT_CHUNK;
  __syncwarp();
  patch_units<W, true>(s.stream, out);
  return NZ_FAULT_NONE;
}

// Finds plane p's section and, in mode local, decodes it.
template <int W>
__device__ __forceinline__ uint32_t open_plane(int p, const uint8_t *chunk, uint32_t units, uint8_t *dst,
                                               Cursor *cursor, Bench<W> *bench, Sections *s) {
  const Record record(chunk, p);
  PlaneBytes plane = {chunk + kRecordBytes * p + 1, 0, units};  // mode constant
  if (!cursor->align()) return NZ_FAULT_CHUNK;
  if (p == W - 1) s->last = cursor->at();
  if (record.mode == kRaw || record.mode == kSix) {
    const uint32_t all = record.mode == kSix ? six_bytes(units) : units;
    const uint32_t stored = p == 1 && s->payload ? all - kPayloadBytes : all;
    plane = {cursor->take(stored), 1, stored};
    if (!plane.bytes) return NZ_FAULT_CHUNK;
  }
  if (record.mode == kLocal) {
    bench->table = nullptr;
    if (!take_local_table(cursor, &bench->shared->lookup)) return NZ_FAULT_CHUNK;
  }
  if (has_stream(record.mode)) {
    if (!take_stream(record, units, cursor, &s->stream)) return NZ_FAULT_CHUNK;
    if (p > 0) {
      plane = {dst + (W - 1 - p), W, units};
      const uint32_t fault = decode_local<W>(s->stream, bench->shared, units, dst + (W - 1 - p));
      if (fault) return fault;
    }
  }
  if (lane_id() == 0) bench->shared->planes[p] = plane;
  return NZ_FAULT_NONE;
}

template <int W>
__device__ __forceinline__ uint32_t open_chunk(const uint8_t *chunk, uint32_t size, uint32_t kind,
                                               uint32_t units, uint8_t *dst, Bench<W> *bench, Sections *s) {
  if (size < kRecordBytes * W) return NZ_FAULT_CHUNK;
  s->mode0 = Record(chunk, 0).mode;
  s->payload = false;
  s->raw = true;
#pragma unroll 1
  for (int p = 0; p < W; p++) {
    const Record record(chunk, p);
    if (!record.allowed(p, kind, s->mode0, units)) return NZ_FAULT_CHUNK;
    if (p > 0) s->raw = s->raw && record.mode == kRaw;
    if (p == 1 && s->mode0 != kLocal && has_stream(s->mode0))
      s->payload = record.mode == kSix || (record.mode == kRaw && units >= kPayloadBytes);
  }
  Cursor cursor(chunk, kRecordBytes * W, size);
#pragma unroll 1
  for (int p = W - 1; p >= 0; p--) {
    const uint32_t fault = open_plane<W>(p, chunk, units, dst, &cursor, bench, s);
    if (fault) return fault;
  }
  __syncwarp();
  return cursor.align() && !cursor.left() ? NZ_FAULT_NONE : NZ_FAULT_CHUNK;
}

// Brings an entry's table (§5) into the lookup, if it is not there.
template <int W>
__device__ __forceinline__ bool load_table(const uint8_t *entry, uint32_t kind, Bench<W> *bench) {
  if (bench->table == entry) return true;
  bench->table = nullptr;
  if (kind == kRankTable)
    load_rank_table(entry + kEntryHeader, &bench->shared->lookup);
  else if (!load_byte_table(entry + kEntryHeader, &bench->shared->lookup))
    return false;
  bench->table = entry;
  return true;
}

// Decodes a chunk to `dst`, aligned to W; returns what is wrong with it. `entry` is its table's in the blob.
template <int W>
__device__ __forceinline__ uint32_t decode_chunk(const uint8_t *chunk, uint32_t size, uint32_t kind,
                                                 const uint8_t *entry, uint32_t units, uint8_t *dst,
                                                 Bench<W> *bench) {
  typedef typename UnitOf<W>::Type Type;
  Type *const out = reinterpret_cast<Type *>(dst);
  const PlaneBytes *const planes = bench->shared->planes;
  const Lookup *const lookup = &bench->shared->lookup;
  WordRing *const ring = &bench->shared->ring;
  Sections s = {};
  const uint32_t fault = open_chunk<W>(chunk, size, kind, units, dst, bench, &s);
  if (fault) return fault;
  if (!has_stream(s.mode0)) {
#pragma unroll 1
    for (uint32_t i = lane_id(); i < units; i += kWarp)
      out[i] = Plane0<W>().unit(planes[0].at(i), AnyPlanes<W>{planes}.low(i));
    return NZ_FAULT_NONE;
  }
  if (s.mode0 != kLocal && !load_table(entry, kind, bench)) return NZ_FAULT_CHUNK;
  if (s.mode0 == kRank) return merge_coded<W>(s, planes, RankTable{lookup}, ring, units, out);
  const ByteTable table = {lookup, lookup->bits};
  if constexpr (W == 2 || W == 4) {
    if (s.mode0 == kJoint) return merge_joint<W>(s, planes, table, 4 * __ldg(entry + 4), ring, units, out);
  }
  return merge_coded<W>(s, planes, table, ring, units, out);
}

}  // namespace nz

#endif
