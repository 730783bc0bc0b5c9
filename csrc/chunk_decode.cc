// Decoding of chunks: streams to planes, planes to units, a tile at a time so that planes stay in the
// first-level cache.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "chunk.h"
#include "rans.h"

namespace nz {
namespace {

constexpr size_t kTile = 2048;  // units decoded and merged at a time
constexpr size_t kBlock = 128;  // of mode six: tiles begin at multiples
constexpr size_t kShort = 2 * kBlock;
constexpr size_t kTileSteps = kTile / kLanes;
// What the loops may read behind a stream's words when the stream is corrupt (kernels.h): a tile, run before
// its words are counted.
constexpr size_t kReadAhead = kStepWords * (kTileSteps + 2);

// Units of the next tile when `left` are left. The last tile of a chunk is at least a block, so that the
// payload, which is known only when all symbols are, belongs to that tile alone.
size_t tile_of(size_t left) {
  return left < kShort ? left : std::min(kTile, (left - kBlock) / kBlock * kBlock);
}

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

// Chunks that may be open at once. The loops want `interleave` streams of one kind of table, rank or not; of
// so many chunks, one kind has as many as they want.
constexpr int slots_for(int interleave) { return 2 * interleave - 1; }
constexpr int kMaxSlots = slots_for(kMaxInterleave);

// A chunk that is being decoded.
struct OpenChunk {
  DecodeChunk chunk;
  const TableCache *table;
  size_t at;  // units decoded so far
  ChunkView view;
  DecodeStream stream;              // of plane 0
  const uint8_t *words_end;         // of that stream
  const uint8_t *plane[kMaxWidth];  // bytes of the whole plane, or null for those made a tile at a time
  size_t patch;                     // next patch of plane 0
  alignas(64) uint8_t symbols[kTile];
  uint8_t tile[2][kTile];  // planes 0 and 1, where they have to be made
  uint8_t payload[kPayloadBytes];
  uint8_t constant[kMaxWidth][kTile];         // planes of mode constant
  alignas(64) uint8_t units[8 * kTile];       // where there is no dst
  uint8_t local[kMaxWidth][kMaxUnits];        // planes of mode local, decoded whole
  uint8_t words[2 * kMaxUnits + kReadAhead];  // a copy, where too little follows the words in the source

  size_t left() const { return chunk.units - at; }
  Mode head() const { return view.planes[0].mode; }
  bool streams() const { return has_stream(head()) && head() != Mode::kLocal; }
};

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
bool decode_local(const PlaneView &plane, size_t units, const uint8_t *end_of_source, uint8_t *words_copy,
                  ByteTable *table, uint8_t *out) {
  size_t used;
  if (!read_byte_table(plane.table, plane.table_bytes, table, &used)) return false;
  DecodeStream stream;
  if (!open_stream(plane, readable_words(plane, end_of_source, words_copy), &stream)) return false;
  const uint8_t *const end = stream.next + 2 * plane.word_count;
  DecodeStream *const streams = &stream;
  size_t at = 0;
  while (units - at >= kLanes) {
    const size_t steps = std::min((units - at) / kLanes, kTileSteps);
    stream.symbols = out + at;
    kernels().decode_byte(&table, &streams, 1, steps);
    if (stream.next > end) return false;
    at += steps * kLanes;
  }
  tail_byte(*table, &stream, out + at, units - at);
  if (!close_stream(stream, end, nullptr)) return false;
  size_t patch = 0;
  apply_patches(plane, &patch, 0, units, out);
  return true;
}

// Bytes [at, at + n) of plane 1's section, with the payload where it ends the section.
const uint8_t *plane1_bytes(OpenChunk *open, size_t at, size_t n) {
  const PlaneView &plane = open->view.planes[1];
  if (at + n <= plane.stored) return plane.bytes + at;
  const size_t from_file = at < plane.stored ? plane.stored - at : 0;
  std::memcpy(open->tile[1], plane.bytes + at, from_file);
  std::memcpy(open->tile[1] + from_file, open->payload + (at + from_file - plane.stored), n - from_file);
  return open->tile[1];
}

// Planes 0 and 1 of a tile of mode joint, from symbols, packed values and patches.
void join_tile(OpenChunk *open, size_t at, size_t n) {
  const size_t blocks = (n + kBlock - 1) / kBlock;
  uint8_t *const plane0 = open->tile[0], *const plane1 = open->tile[1];
  uint8_t six[kTile / kBlock * 96];
  std::memcpy(six, plane1_bytes(open, at / kBlock * 96, blocks * 96), blocks * 96);
  kernels().merge_joint(open->symbols, six, open->table->base, plane0, plane1, blocks);
  const PlaneView &plane = open->view.planes[0];
  for (; open->patch < plane.patch_count; open->patch++) {
    const uint8_t *patch = plane.patches + open->patch * plane.patch_bytes;
    const size_t position = load_u16(patch);
    if (position >= at + n) return;
    const uint16_t head = load_u16(patch + 2);
    plane0[position - at] = static_cast<uint8_t>(head >> 2);
    plane1[position - at] = static_cast<uint8_t>(head << 6 | (plane1[position - at] & 63));
  }
}

// The bits of mode six that belong to no unit must be 0 (§4.6).
bool six_padding_is_zero(const OpenChunk &open, size_t at, size_t n) {
  if (n % 128 == 0) return true;
  uint8_t last[96], zeros[128] = {}, plane0[128], plane1[128];
  const PlaneView &plane = open.view.planes[1];
  const size_t from = at / 128 * 96 + n / 128 * 96;
  for (size_t i = 0; i < 96; i++)
    last[i] = from + i < plane.stored ? plane.bytes[from + i] : open.payload[from + i - plane.stored];
  kernels().merge_joint(zeros, last, 0, plane0, plane1, 1);
  return std::all_of(plane1 + n % 128, plane1 + 128, [](uint8_t b) { return b == 0; });
}

// Merges units [at, at + n) of a chunk whose plane 0 has its symbols ready.
nz_status merge_tile(OpenChunk *open, size_t n, uint8_t *units) {
  const Layout &layout = *open->chunk.layout;
  const size_t at = open->at;
  const uint8_t *planes[kMaxWidth];
  for (int p = 0; p < layout.width; p++) {
    const Mode mode = open->view.planes[p].mode;
    if (mode == Mode::kConstant)
      planes[p] = open->constant[p];
    else if (p == 1 && mode == Mode::kRaw)
      planes[p] = plane1_bytes(open, at, n);
    else if (open->plane[p])
      planes[p] = open->plane[p] + at;
  }
  if (open->head() == Mode::kJoint) {
    join_tile(open, at, n);
    if (n == open->left() && !six_padding_is_zero(*open, at, n)) return NZ_CORRUPT;
    planes[0] = open->tile[0], planes[1] = open->tile[1];
  } else if (open->streams()) {
    apply_patches(open->view.planes[0], &open->patch, at, n, open->symbols);
    planes[0] = open->symbols;
  }
  kernels().merge[layout.rotate][log2_width(layout.width)](planes, units, n);
  return NZ_OK;
}

// The tail of a stream and its end.
bool end_stream(OpenChunk *open, size_t n) {
  uint8_t *const tail = open->symbols + n / kLanes * kLanes;
  if (open->table->kind == TableKind::kRank)
    tail_rank(open->table->rank, &open->stream, tail, n % kLanes);
  else
    tail_byte(open->table->byte, &open->stream, tail, n % kLanes);
  return close_stream(open->stream, open->words_end, open->view.payload ? open->payload : nullptr);
}

// Decodes n symbols, whole steps of them, of up to four streams that share a kind of table.
void decode_tile(OpenChunk *const *open, int count, size_t n) {
  DecodeStream *streams[kMaxInterleave];
  const RankTable *ranks[kMaxInterleave];
  const ByteTable *bytes[kMaxInterleave];
  for (int k = 0; k < count; k++) {
    // While this tile is decoded, the next one's memory is fetched.
    const size_t next = open[k]->at + n;
    DecodeStream &stream = open[k]->stream;
    const DecodeChunk &chunk = open[k]->chunk;
    stream.symbols = open[k]->symbols;
    if (chunk.layout->width > 1)
      stream.reads = reinterpret_cast<uintptr_t>(open[k]->view.planes[1].bytes) + next;
    if (chunk.dst) stream.write_width = static_cast<size_t>(chunk.layout->width);
    stream.writes = reinterpret_cast<uintptr_t>(chunk.dst) + next * stream.write_width;
    streams[k] = &stream;
    ranks[k] = &open[k]->table->rank, bytes[k] = &open[k]->table->byte;
  }
  if (open[0]->table->kind == TableKind::kRank)
    kernels().decode_rank(ranks, streams, count, n / kLanes);
  else
    kernels().decode_byte(bytes, streams, count, n / kLanes);
}

}  // namespace

class ChunkDecoder {
 public:
  // As many slots as the loops want: each is most of a megabyte. Null where there is no memory.
  static ChunkDecoderPtr make(int interleave);
  int interleave() const { return interleave_; }
  void run(DecodeFeed &feed);

 private:
  bool open_next(DecodeFeed &feed);
  nz_status open_planes(OpenChunk *open);
  const TableCache *load_table(const DecodeChunk &chunk);
  void step(DecodeFeed &feed, OpenChunk *const *open, int count);
  void advance(DecodeFeed &feed, OpenChunk *open, size_t n);
  void finish(DecodeFeed &feed, OpenChunk *open);
  int gather(OpenChunk **alike);

  int interleave_, slot_count_;
  std::unique_ptr<OpenChunk[]> slots_;
  std::unique_ptr<TableCache[]> tables_;  // one for each slot
  bool in_use_[kMaxSlots] = {};
  ByteTable local_table_;
  uint8_t local_words_[2 * kMaxUnits + kReadAhead];
};

ChunkDecoderPtr ChunkDecoder::make(int interleave) {
  ChunkDecoderPtr decoder(new (std::nothrow) ChunkDecoder);
  if (!decoder) return nullptr;
  const int slots = slots_for(interleave);
  decoder->interleave_ = interleave, decoder->slot_count_ = slots;
  decoder->slots_.reset(new (std::nothrow) OpenChunk[slots]);
  decoder->tables_.reset(new (std::nothrow) TableCache[slots]);
  return decoder->slots_ && decoder->tables_ ? std::move(decoder) : nullptr;
}

ChunkDecoder *chunk_decoder(ChunkDecoderPtr *kept) {
  const int interleave = kernels().interleave;
  if (!*kept || (*kept)->interleave() != interleave) *kept = ChunkDecoder::make(interleave);
  return kept->get();
}
void ChunkDecoderDeleter::operator()(ChunkDecoder *decoder) const { delete decoder; }
void decode_chunks(DecodeFeed &feed, ChunkDecoder *decoder) { decoder->run(feed); }

// The chunk's table, loaded unless some slot has it: tables are large enough to be worth sharing the cache.
const TableCache *ChunkDecoder::load_table(const DecodeChunk &chunk) {
  TableCache *free = nullptr;
  for (int t = 0; t < slot_count_; t++) {
    TableCache &table = tables_[t];
    if (table.holds(*chunk.tables, chunk.table_number)) {
      free = &table;
      break;
    }
    bool used = false;
    for (int k = 0; k < slot_count_; k++) used |= in_use_[k] && slots_[k].table == &table;
    if (!used) free = &table;
  }
  free->load(*chunk.tables, chunk.table_number);  // never null: there are as many tables as slots
  return free;
}

// Everything before the first tile: parsing, whole planes, the stream of plane 0.
nz_status ChunkDecoder::open_planes(OpenChunk *open) {
  const DecodeChunk &chunk = open->chunk;
  open->at = open->patch = 0;
  const nz_status status =
      parse_chunk(*chunk.layout, open->table->kind, chunk.src, chunk.size, chunk.units, &open->view);
  if (status != NZ_OK) return status;
  const uint8_t *end_of_source = chunk.src + chunk.size + chunk.slack;
  for (int p = 0; p < chunk.layout->width; p++) {
    const PlaneView &plane = open->view.planes[p];
    open->plane[p] = plane.mode == Mode::kRaw ? plane.bytes : nullptr;
    if (plane.mode == Mode::kConstant) {
      std::memset(open->constant[p], plane.constant, std::min(kTile, chunk.units));
    } else if (plane.mode == Mode::kLocal) {
      if (!decode_local(plane, chunk.units, end_of_source, local_words_, &local_table_, open->local[p]))
        return NZ_CORRUPT;
      open->plane[p] = open->local[p];
    }
  }
  if (!open->streams()) return NZ_OK;
  const PlaneView &head = open->view.planes[0];
  const uint8_t *words = readable_words(head, end_of_source, open->words);
  open->words_end = words + 2 * head.word_count;
  open->stream.reads = open->stream.write_width = 0;
  return open_stream(head, words, &open->stream) ? NZ_OK : NZ_CORRUPT;
}

// Takes a chunk and opens it, or, where nothing waits for anything, decodes it at once.
bool ChunkDecoder::open_next(DecodeFeed &feed) {
  const auto slot = static_cast<int>(std::find(in_use_, in_use_ + slot_count_, false) - in_use_);
  OpenChunk &open = slots_[slot];
  if (!feed.next(&open.chunk)) return false;
  open.table = load_table(open.chunk);
  in_use_[slot] = true;
  open.chunk.status = open_planes(&open);
  if (open.chunk.status != NZ_OK || open.chunk.units < kShort || !open.streams()) finish(feed, &open);
  return true;
}

// Merges n units whose symbols are there.
void ChunkDecoder::advance(DecodeFeed &feed, OpenChunk *open, size_t n) {
  const size_t width = static_cast<size_t>(open->chunk.layout->width);
  uint8_t *const units = open->chunk.dst ? open->chunk.dst + open->at * width : open->units;
  open->chunk.status = merge_tile(open, n, units);
  if (open->chunk.status != NZ_OK) return;
  if (!open->chunk.dst) feed.take(open->chunk, open->at, n, units);
  open->at += n;
}

// What is left of a chunk, unless it failed, alone; and its slot is free.
void ChunkDecoder::finish(DecodeFeed &feed, OpenChunk *open) {
  while (open->chunk.status == NZ_OK && open->left()) {
    const size_t n = tile_of(open->left());
    if (open->streams()) {
      decode_tile(&open, 1, n / kLanes * kLanes);
      if (!end_stream(open, n)) open->chunk.status = NZ_CORRUPT;
    }
    if (open->chunk.status == NZ_OK) advance(feed, open, n);
  }
  in_use_[open - slots_.get()] = false;
  feed.done(open->chunk);
}

// The open chunks of the kind of table that most have, as many as the loops run side by side.
int ChunkDecoder::gather(OpenChunk **alike) {
  OpenChunk *kinds[2][kMaxSlots];
  int counts[2] = {};
  for (int k = 0; k < slot_count_; k++) {
    if (!in_use_[k]) continue;
    const bool rank = slots_[k].table->kind == TableKind::kRank;
    kinds[rank][counts[rank]++] = &slots_[k];
  }
  const bool rank = counts[1] >= counts[0];
  const int count = std::min(counts[rank], interleave_);
  std::copy_n(kinds[rank], count, alike);
  return count == 3 ? 2 : count;
}

// A tile of several chunks side by side.
void ChunkDecoder::step(DecodeFeed &feed, OpenChunk *const *open, int count) {
  size_t n = kTile;
  for (int k = 0; k < count; k++) n = std::min(n, tile_of(open[k]->left()));
  decode_tile(open, count, n);
  for (int k = 0; k < count; k++) {
    if (open[k]->stream.next <= open[k]->words_end)
      advance(feed, open[k], n);
    else
      open[k]->chunk.status = NZ_CORRUPT;
    if (open[k]->chunk.status != NZ_OK || open[k]->left() < kShort) finish(feed, open[k]);
  }
}

void ChunkDecoder::run(DecodeFeed &feed) {
  for (int t = 0; t < slot_count_; t++) tables_[t].forget();
  OpenChunk *open[kMaxInterleave];
  for (bool more = true;;) {
    int count = gather(open);
    while (more && count < interleave_) {
      more = open_next(feed);
      count = gather(open);
    }
    if (!count) return;
    step(feed, open, count);
  }
}

}  // namespace nz
