// One chunk (spec §4): its parsed form, decoding and encoding.
#ifndef NEUZIP_CHUNK_H
#define NEUZIP_CHUNK_H

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels.h"
#include "layout.h"
#include "neuzip.h"
#include "plan.h"

namespace nz {

enum class Mode : uint8_t { kRaw = 0, kConstant = 1, kRank = 2, kByte = 3, kLocal = 4, kJoint = 5, kSix = 6 };

constexpr size_t kMaxUnits = size_t{1} << 16;  // units of a chunk
constexpr size_t kRecordBytes = 8;
constexpr size_t kStateBytes = 4 * kLanes;
constexpr size_t kPayloadBytes = 2 * kLanes;

inline size_t six_bytes(size_t units) { return (units + 127) / 128 * 96; }

inline bool has_stream(Mode mode) {
  return mode == Mode::kRank || mode == Mode::kByte || mode == Mode::kLocal || mode == Mode::kJoint;
}

// A plane of a chunk as it lies in the file. Pointers are into the chunk.
struct PlaneView {
  Mode mode;
  uint8_t constant;
  const uint8_t *bytes;  // raw, six: the section, `stored` bytes
  size_t stored;
  const uint8_t *table;  // local
  size_t table_bytes;
  const uint8_t *states;
  const uint8_t *words;
  size_t word_count;
  const uint8_t *patches;
  size_t patch_count;
  size_t patch_bytes;  // of one patch
};

struct ChunkView {
  size_t units;
  bool payload;  // plane 0's stream carries the last bytes of plane 1's section (§4.5)
  PlaneView planes[kMaxWidth];
};

// Checks everything that can be checked without decoding.
nz_status parse_chunk(const Layout &layout, TableKind kind, const uint8_t *chunk, size_t size, size_t units,
                      ChunkView *view);

// Scratch memory of a thread that decodes.
class DecodeScratch;
struct DecodeScratchDeleter {
  void operator()(DecodeScratch *scratch) const;
};
using DecodeScratchPtr = std::unique_ptr<DecodeScratch, DecodeScratchDeleter>;
DecodeScratchPtr make_decode_scratch();

struct DecodeChunk {
  const uint8_t *src;
  size_t size;
  size_t slack;  // readable bytes behind the chunk
  size_t units;
  uint8_t *dst;
  nz_status status;  // out
};

// Decodes 1, 2 or 4 chunks of equal length that share a table side by side.
void decode_chunks(const Layout &layout, const TableCache &table, DecodeChunk *chunks, int count,
                   DecodeScratch *scratch);

class EncodeScratch;
struct EncodeScratchDeleter {
  void operator()(EncodeScratch *scratch) const;
};
using EncodeScratchPtr = std::unique_ptr<EncodeScratch, EncodeScratchDeleter>;
EncodeScratchPtr make_encode_scratch();

// Encodes a chunk into the scratch; *chunk points to its bytes until the next call.
size_t encode_chunk(const Layout &layout, const TableCache &table, const uint8_t *src, size_t units,
                    EncodeScratch *scratch, const uint8_t **chunk);

// Upper bound of encode_chunk's result.
inline size_t chunk_bound(const Layout &layout, size_t units) {
  return static_cast<size_t>(layout.width) * (kRecordBytes + 4 + units) + 4;
}

}  // namespace nz

#endif
