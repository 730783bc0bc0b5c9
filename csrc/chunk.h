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

// A chunk to decode.
struct DecodeChunk {
  size_t job;       // for whoever hands it out
  uint64_t number;  // in its run, likewise
  const Layout *layout;
  const TableBlob *tables;
  uint64_t table_number;  // in its tensor: which of the tables is its
  const uint8_t *src;
  size_t size;
  size_t slack;  // readable bytes behind the chunk
  size_t units;
  uint8_t *dst;      // null: the units go to DecodeFeed::take
  nz_status status;  // out
};

// Hands out chunks of any tensors, and takes them back in any order.
class DecodeFeed {
 public:
  virtual ~DecodeFeed() = default;
  // False when there is none left.
  virtual bool next(DecodeChunk *chunk) = 0;
  // Units [at, at + count) of a chunk without a dst, in order; `units` is valid during the call.
  virtual void take(const DecodeChunk &chunk, size_t at, size_t count, const uint8_t *units) = 0;
  virtual void done(const DecodeChunk &chunk) = 0;
};

// Decodes what a feed hands out, several chunks side by side: a stream alone would leave a core idle most of
// the time, waiting for itself. One thread's, with its scratch memory.
class ChunkDecoder;
struct ChunkDecoderDeleter {
  void operator()(ChunkDecoder *decoder) const;
};
using ChunkDecoderPtr = std::unique_ptr<ChunkDecoder, ChunkDecoderDeleter>;
// The one kept, or one for the loops in use if it is for others; null if memory is short.
ChunkDecoder *chunk_decoder(ChunkDecoderPtr *kept);
void decode_chunks(DecodeFeed &feed, ChunkDecoder *decoder);

class EncodeScratch;
struct EncodeScratchDeleter {
  void operator()(EncodeScratch *scratch) const;
};
using EncodeScratchPtr = std::unique_ptr<EncodeScratch, EncodeScratchDeleter>;
EncodeScratchPtr make_encode_scratch();

// A chunk to encode.
struct EncodeChunk {
  const Layout *layout;
  const TableCache *table;
  const uint8_t *src;
  size_t units;
  uint8_t *dst;          // chunk_bound bytes to write it to; null: the scratch
  const uint8_t *next;   // where bytes begin that will be encoded after it; they are fetched into the cache
  const uint8_t *bytes;  // out: the chunk, there or, until the next call, in the scratch
  size_t size;           // out
};

// Encodes one or two chunks side by side.
void encode_chunks(EncodeChunk *chunks, int count, EncodeScratch *scratch);

// Upper bound of a chunk's size.
inline size_t chunk_bound(const Layout &layout, size_t units) {
  return static_cast<size_t>(layout.width) * (kRecordBytes + 4 + units) + 4;
}

}  // namespace nz

#endif
