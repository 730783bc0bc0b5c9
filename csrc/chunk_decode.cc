// Decoding of chunks: streams to planes, planes to units, a tile at a time so that planes stay in the
// first-level cache.
#include <algorithm>
#include <cstring>
#include <new>

#include "chunk.h"
#include "rans.h"

namespace nz {
namespace {

constexpr size_t kTile = 2048;  // units decoded and merged at a time; a multiple of 128 (mode six)
constexpr size_t kTileSteps = kTile / kLanes;
// What the loops may read behind a stream's words when the stream is corrupt (kernels.h): a last tile of up
// to twice kTile, run before its words are counted.
constexpr size_t kReadAhead = kStepWords * (2 * kTileSteps + 2);

bool open_stream(const PlaneView &plane, const uint8_t *words, DecodeStream *stream) {
  std::memcpy(stream->state, plane.states, kStateBytes);
  stream->next = words;
  return std::all_of(stream->state, stream->state + kLanes, [](uint32_t x) { return x >= kLow; });
}

// Exactly all words must have been taken, and the states must be where the encoder began (§4.1, §4.5).
bool close_stream(const DecodeStream &stream, const uint8_t *end, uint8_t *payload) {
  if (stream.next != end) return false;
  for (int lane = 0; lane < kLanes; lane++) {
    const uint32_t x = stream.state[lane];
    if (payload ? x >> 16 != 1 : x != kLow) return false;
    if (payload) store_u16(payload + 2 * lane, static_cast<uint16_t>(x));
  }
  return true;
}

// The symbols after the last whole step.
void tail_rank(const RankTable &table, DecodeStream *stream, uint8_t *symbols, size_t n) {
  for (size_t lane = 0; lane < n; lane++) symbols[lane] = get_rank(table, stream, static_cast<int>(lane));
}
void tail_byte(const ByteTable &table, DecodeStream *stream, uint8_t *symbols, size_t n) {
  for (size_t lane = 0; lane < n; lane++) symbols[lane] = get_byte(table, stream, static_cast<int>(lane));
}

}  // namespace

class DecodeScratch {
 public:
  // Of each of the chunks decoded side by side:
  struct Lane {
    ChunkView view;
    const uint8_t *words_end;         // of plane 0's stream
    const uint8_t *plane[kMaxWidth];  // bytes of the whole plane, or null for those made a tile at a time
    size_t patch;                     // next patch of plane 0
    uint8_t symbols[2 * kTile];       // of plane 0's stream
    uint8_t tile[2][2 * kTile];       // planes 0 and 1, where they have to be made
    uint8_t payload[kPayloadBytes];
    uint8_t words[2 * kMaxUnits + kReadAhead];  // a copy, where too little follows the words in the source
  };
  Lane lanes[kMaxInterleave];
  DecodeStream streams[kMaxInterleave];                    // of plane 0
  uint8_t constant[kMaxWidth][kMaxInterleave][2 * kTile];  // planes of mode constant
  uint8_t local[kMaxInterleave][kMaxWidth][kMaxUnits];     // planes of mode local, decoded whole
  uint8_t local_words[2 * kMaxUnits + kReadAhead];
  ByteTable local_table;
};

DecodeScratchPtr make_decode_scratch() { return DecodeScratchPtr(new (std::nothrow) DecodeScratch); }
void DecodeScratchDeleter::operator()(DecodeScratch *scratch) const { delete scratch; }

namespace {

using Lane = DecodeScratch::Lane;

// The stream's words, followed by at least kReadAhead readable bytes.
const uint8_t *readable_words(const PlaneView &plane, const uint8_t *end_of_source, uint8_t *copy) {
  const uint8_t *words_end = plane.words + 2 * plane.word_count;
  if (static_cast<size_t>(end_of_source - words_end) >= kReadAhead) return plane.words;
  std::memcpy(copy, plane.words, 2 * plane.word_count);
  std::memset(copy + 2 * plane.word_count, 0, kReadAhead);
  return copy;
}

void apply_patches(const PlaneView &plane, size_t *next, size_t at, size_t n, uint8_t *bytes) {
  for (; *next < plane.patch_count; ++*next) {
    const uint8_t *patch = plane.patches + *next * plane.patch_bytes;
    const size_t position = load_u16(patch);
    if (position >= at + n) return;
    bytes[position - at] = patch[2];
  }
}

// A plane of mode local, whole. The loops check nothing, so the words are counted every tile.
bool decode_local(const PlaneView &plane, size_t units, const uint8_t *end_of_source, DecodeScratch *scratch,
                  uint8_t *out) {
  size_t used;
  ByteTable &table = scratch->local_table;
  if (!read_byte_table(plane.table, plane.table_bytes, &table, &used)) return false;
  DecodeStream stream;
  if (!open_stream(plane, readable_words(plane, end_of_source, scratch->local_words), &stream)) return false;
  const uint8_t *const end = stream.next + 2 * plane.word_count;
  size_t at = 0;
  while (units - at >= kLanes) {
    const size_t steps = std::min((units - at) / kLanes, kTileSteps);
    uint8_t *symbols = out + at;
    kernels().decode_byte(table, &stream, &symbols, 1, steps);
    if (stream.next > end) return false;
    at += steps * kLanes;
  }
  tail_byte(table, &stream, out + at, units - at);
  if (!close_stream(stream, end, nullptr)) return false;
  size_t patch = 0;
  apply_patches(plane, &patch, 0, units, out);
  return true;
}

// Everything before the first tile: parsing, whole planes, the stream of plane 0.
nz_status open_chunk(const Layout &layout, const TableCache &table, const DecodeChunk &chunk, int k,
                     DecodeScratch *scratch) {
  Lane &lane = scratch->lanes[k];
  const nz_status status = parse_chunk(layout, table.kind, chunk.src, chunk.size, chunk.units, &lane.view);
  if (status != NZ_OK) return status;
  const uint8_t *end_of_source = chunk.src + chunk.size + chunk.slack;
  for (int p = 0; p < layout.width; p++) {
    const PlaneView &plane = lane.view.planes[p];
    lane.plane[p] = plane.mode == Mode::kRaw ? plane.bytes : nullptr;
    if (plane.mode == Mode::kConstant) {
      std::memset(scratch->constant[p][k], plane.constant, std::min(2 * kTile, chunk.units));
    } else if (plane.mode == Mode::kLocal) {
      if (!decode_local(plane, chunk.units, end_of_source, scratch, scratch->local[k][p])) return NZ_CORRUPT;
      lane.plane[p] = scratch->local[k][p];
    }
  }
  const PlaneView &head = lane.view.planes[0];
  lane.patch = 0;
  if (!has_stream(head.mode) || head.mode == Mode::kLocal) return NZ_OK;
  const uint8_t *words = readable_words(head, end_of_source, lane.words);
  lane.words_end = words + 2 * head.word_count;
  return open_stream(head, words, &scratch->streams[k]) ? NZ_OK : NZ_CORRUPT;
}

// Bytes [at, at + n) of plane 1's section, with the payload where it ends the section.
const uint8_t *plane1_bytes(Lane *lane, size_t at, size_t n) {
  const PlaneView &plane = lane->view.planes[1];
  if (at + n <= plane.stored) return plane.bytes + at;
  const size_t from_file = at < plane.stored ? plane.stored - at : 0;
  std::memcpy(lane->tile[1], plane.bytes + at, from_file);
  std::memcpy(lane->tile[1] + from_file, lane->payload + (at + from_file - plane.stored), n - from_file);
  return lane->tile[1];
}

// Planes 0 and 1 of a tile of mode joint, from symbols, packed values and patches.
void join_tile(const TableCache &table, Lane *lane, size_t at, size_t n) {
  const size_t blocks = (n + 127) / 128;
  uint8_t *const plane0 = lane->tile[0], *const plane1 = lane->tile[1];
  uint8_t six[2 * kTile / 128 * 96];
  std::memcpy(six, plane1_bytes(lane, at / 128 * 96, blocks * 96), blocks * 96);
  kernels().merge_joint(lane->symbols, six, table.base, plane0, plane1, blocks);
  const PlaneView &plane = lane->view.planes[0];
  for (; lane->patch < plane.patch_count; lane->patch++) {
    const uint8_t *patch = plane.patches + lane->patch * plane.patch_bytes;
    const size_t position = load_u16(patch);
    if (position >= at + n) return;
    const uint16_t head = load_u16(patch + 2);
    plane0[position - at] = static_cast<uint8_t>(head >> 2);
    plane1[position - at] = static_cast<uint8_t>(head << 6 | (plane1[position - at] & 63));
  }
}

// The bits of mode six that belong to no unit must be 0 (§4.6).
bool six_padding_is_zero(const Lane &lane, size_t at, size_t n) {
  if (n % 128 == 0) return true;
  uint8_t last[96], zeros[128] = {}, plane0[128], plane1[128];
  const PlaneView &plane = lane.view.planes[1];
  const size_t from = at / 128 * 96 + n / 128 * 96;
  for (size_t i = 0; i < 96; i++)
    last[i] = from + i < plane.stored ? plane.bytes[from + i] : lane.payload[from + i - plane.stored];
  kernels().merge_joint(zeros, last, 0, plane0, plane1, 1);
  return std::all_of(plane1 + n % 128, plane1 + 128, [](uint8_t b) { return b == 0; });
}

// Merges units [at, at + n) of a chunk whose plane 0 has its symbols ready.
nz_status merge_tile(const Layout &layout, const TableCache &table, DecodeChunk *chunk, int k, size_t at,
                     size_t n, DecodeScratch *scratch) {
  Lane &lane = scratch->lanes[k];
  const uint8_t *planes[kMaxWidth];
  for (int p = 0; p < layout.width; p++) {
    const Mode mode = lane.view.planes[p].mode;
    if (mode == Mode::kConstant)
      planes[p] = scratch->constant[p][k];
    else if (p == 1 && mode == Mode::kRaw)
      planes[p] = plane1_bytes(&lane, at, n);
    else if (lane.plane[p])
      planes[p] = lane.plane[p] + at;
  }
  const Mode head = lane.view.planes[0].mode;
  if (head == Mode::kJoint) {
    const bool last = at + n == lane.view.units;
    join_tile(table, &lane, at, n);
    if (last && !six_padding_is_zero(lane, at, n)) return NZ_CORRUPT;
    planes[0] = lane.tile[0], planes[1] = lane.tile[1];
  } else if (head == Mode::kRank || head == Mode::kByte) {
    apply_patches(lane.view.planes[0], &lane.patch, at, n, lane.symbols);
    planes[0] = lane.symbols;
  }
  const size_t width = static_cast<size_t>(layout.width);
  kernels().merge[layout.rotate][log2_width(layout.width)](planes, chunk->dst + at * width, n);
  return NZ_OK;
}

// Decodes n symbols of plane 0 of chunks first … first + count − 1; the chunk's last n if `last`.
void decode_tile(const TableCache &table, DecodeChunk *chunks, int first, int count, size_t n, bool last,
                 DecodeScratch *scratch) {
  DecodeStream *const streams = scratch->streams + first;
  uint8_t *symbols[kMaxInterleave];
  for (int i = 0; i < count; i++) symbols[i] = scratch->lanes[first + i].symbols;
  const bool rank = table.kind == TableKind::kRank;
  if (rank)
    kernels().decode_rank(table.rank, streams, symbols, count, n / kLanes);
  else
    kernels().decode_byte(table.byte, streams, symbols, count, n / kLanes);
  for (int i = 0; i < count; i++) {
    Lane &lane = scratch->lanes[first + i];
    uint8_t *const tail = symbols[i] + n / kLanes * kLanes;
    if (rank)
      tail_rank(table.rank, &streams[i], tail, n % kLanes);
    else
      tail_byte(table.byte, &streams[i], tail, n % kLanes);
    uint8_t *const payload = lane.view.payload ? lane.payload : nullptr;
    const bool good =
        last ? close_stream(streams[i], lane.words_end, payload) : streams[i].next <= lane.words_end;
    if (!good) chunks[first + i].status = NZ_CORRUPT;
  }
}

// Decodes and merges `count` opened chunks whose planes 0 share a mode, tile by tile. The last tile has at
// least kTile units (or all), so that a payload never straddles two.
void decode_together(const Layout &layout, const TableCache &table, DecodeChunk *chunks, int first, int count,
                     DecodeScratch *scratch) {
  const size_t units = chunks[first].units;
  const Mode mode = scratch->lanes[first].view.planes[0].mode;
  for (size_t at = 0; at < units;) {
    const size_t n = units - at < 2 * kTile ? units - at : kTile;
    if (has_stream(mode) && mode != Mode::kLocal)
      decode_tile(table, chunks, first, count, n, at + n == units, scratch);
    for (int k = first; k < first + count; k++) {
      if (chunks[k].status == NZ_OK)
        chunks[k].status = merge_tile(layout, table, &chunks[k], k, at, n, scratch);
      if (chunks[k].status != NZ_OK) return;
    }
    at += n;
  }
}

}  // namespace

void decode_chunks(const Layout &layout, const TableCache &table, DecodeChunk *chunks, int count,
                   DecodeScratch *scratch) {
  bool alike = count == 2 || count == 4;
  for (int k = 0; k < count; k++) {
    chunks[k].status = open_chunk(layout, table, chunks[k], k, scratch);
    alike = alike && chunks[k].status == NZ_OK &&
            scratch->lanes[k].view.planes[0].mode == scratch->lanes[0].view.planes[0].mode;
  }
  if (alike) {
    decode_together(layout, table, chunks, 0, count, scratch);
    if (std::all_of(chunks, chunks + count, [](const DecodeChunk &c) { return c.status == NZ_OK; })) return;
    // One failed and stopped the others: find out which by decoding them alone.
    for (int k = 0; k < count; k++) chunks[k].status = open_chunk(layout, table, chunks[k], k, scratch);
  }
  for (int k = 0; k < count; k++)
    if (chunks[k].status == NZ_OK) decode_together(layout, table, chunks, k, 1, scratch);
}

}  // namespace nz
