// Encoding of a chunk: units to planes, each plane in the mode that makes it smallest.
#include <algorithm>
#include <cstring>
#include <new>

#include "chunk.h"
#include "histogram.h"
#include "rans.h"

namespace nz {

namespace {

// A stream of plane 0, and what its symbols do not say.
struct Encoded {
  EncodeStream stream;
  size_t word_count;
  size_t patch_count;
  size_t patch_bytes;

  size_t size() const { return kStateBytes + 2 * word_count + patch_count * patch_bytes; }
};

// Writes a chunk from its start; sections arrive in file order.
class ChunkWriter {
 public:
  ChunkWriter() = default;
  ChunkWriter(uint8_t *begin, int width)
      : begin_(begin), at_(begin + kRecordBytes * static_cast<size_t>(width)) {
    std::memset(begin, 0, static_cast<size_t>(at_ - begin));
  }

  void record(int plane, Mode mode, uint8_t param, size_t patches, size_t words) {
    uint8_t *r = begin_ + kRecordBytes * static_cast<size_t>(plane);
    r[0] = static_cast<uint8_t>(mode);
    r[1] = param;
    store_u16(r + 2, static_cast<uint16_t>(patches));
    store_u32(r + 4, static_cast<uint32_t>(words));
  }
  void align() {
    while ((at_ - begin_) % 4) *at_++ = 0;
  }
  void append(const void *bytes, size_t n) {
    if (bytes != at_) std::memcpy(at_, bytes, n);  // a plane may have been made where it belongs
    at_ += n;
  }
  uint8_t *begin() const { return begin_; }
  uint8_t *at() const { return at_; }
  void drop(size_t n) { at_ -= n; }
  size_t size() const { return static_cast<size_t>(at_ - begin_); }

 private:
  uint8_t *begin_ = nullptr, *at_ = nullptr;
};

// A chunk that is being encoded.
struct OpenChunk {
  const EncodeChunk *chunk;
  ChunkWriter writer;
  Mode head;               // what plane 0 is to be coded as, kRaw if not with the frame's table
  const uint8_t *payload;  // of its stream, or null (§4.5)
  Encoded encoded;         // its stream
  uint8_t *planes[kMaxWidth];
  const uint8_t *plane0;   // the first of them, or the units themselves if that is all there is
  const uint8_t *symbols;  // of the stream: plane 0 itself, or symbol_bytes
  alignas(64) uint8_t plane_bytes[kMaxWidth][kMaxUnits];  // as are those below: vectors are stored there
  uint8_t symbol_bytes[kMaxUnits];  // ranks, plane bytes with some replaced, or symbols of the joint mode
  uint8_t six[kMaxUnits / 128 * 96];
  uint8_t below[64];             // the loops may overwrite 64 bytes below the words (kernels.h)
  uint8_t words[2 * kMaxUnits];  // filled from the end
  uint8_t patches[4 * kMaxUnits];
  ByteTable local_table;
  uint8_t bytes[kMaxWidth * (kMaxUnits + kRecordBytes + 4) + 4];  // the encoded chunk
};

bool is_constant(const uint8_t *bytes, size_t n) {
  return n == 0 || std::memcmp(bytes, bytes + 1, n - 1) == 0;
}

// Starts the lanes at 2^16, or at 2^16 | payload (§4.5).
void start_stream(OpenChunk *open, const uint8_t *payload, EncodeStream *stream) {
  for (int lane = 0; lane < kLanes; lane++)
    stream->state[lane] = kLow | (payload ? load_u16(payload + 2 * lane) : 0);
  stream->next = open->words + sizeof open->words;
}

void finish_stream(OpenChunk *open, Encoded *encoded) {
  encoded->word_count = static_cast<size_t>(open->words + sizeof open->words - encoded->stream.next) / 2;
}

// What differs between the two kinds of table.
struct RankCoder {
  using Table = RankTable;
  static const Table &table(const TableCache &cache) { return cache.rank; }
  static void put(const Table &table, EncodeStream *stream, size_t i, uint8_t symbol) {
    put_rank(table, stream, static_cast<int>(i % kLanes), symbol);
  }
  static EncodeRank run() { return kernels().encode_rank; }
};
struct ByteCoder {
  using Table = ByteTable;
  static const Table &table(const TableCache &cache) { return cache.byte; }
  static void put(const Table &table, EncodeStream *stream, size_t i, uint8_t symbol) {
    put_byte(table, stream, static_cast<int>(i % kLanes), symbol);
  }
  static EncodeByte run() { return kernels().encode_byte; }
};

// Encodes symbols[from … n) of a stream whose later symbols are encoded; `from` is a whole number of steps.
template <typename Coder>
void encode_down(const typename Coder::Table &table, const uint8_t *symbols, size_t n, size_t from,
                 EncodeStream *stream) {
  const size_t steps = (n - from) / kLanes;
  for (size_t i = n; i-- > from + steps * kLanes;) Coder::put(table, stream, i, symbols[i]);
  const auto *const tables = &table;
  stream->symbols = symbols + from;
  Coder::run()(&tables, &stream, 1, steps);
}

// The streams of one or two chunks: the longer one's excess, then both together.
template <typename Coder>
void encode_heads(OpenChunk *const *open, int count) {
  const typename Coder::Table *tables[kEncodeInterleave];
  EncodeStream *streams[kEncodeInterleave];
  size_t common = kMaxUnits;
  for (int k = 0; k < count; k++) common = std::min(common, open[k]->chunk->units / kLanes * kLanes);
  for (int k = 0; k < count; k++) {
    tables[k] = &Coder::table(*open[k]->chunk->table);
    streams[k] = &open[k]->encoded.stream;
    start_stream(open[k], open[k]->payload, streams[k]);
    encode_down<Coder>(*tables[k], open[k]->symbols, open[k]->chunk->units, common, streams[k]);
    streams[k]->symbols = open[k]->symbols;
  }
  Coder::run()(tables, streams, count, common / kLanes);
  for (int k = 0; k < count; k++) finish_stream(open[k], &open[k]->encoded);
}

void append_stream(const OpenChunk &open, const Encoded &encoded, ChunkWriter *writer) {
  writer->append(encoded.stream.state, kStateBytes);
  writer->append(encoded.stream.next, 2 * encoded.word_count);
  writer->append(open.patches, encoded.patch_count * encoded.patch_bytes);
}

// Adds a patch of a plane byte; false if there are too many for a record.
bool add_patch(OpenChunk *open, Encoded *encoded, size_t position, uint8_t value) {
  if (encoded->patch_count == UINT16_MAX) return false;
  uint8_t *patch = open->patches + 3 * encoded->patch_count++;
  store_u16(patch, static_cast<uint16_t>(position));
  patch[2] = value;
  return true;
}

// Plane 0 as ranks; those missing become rank 0 and a patch.
bool ranks_and_patches(const RankTable &table, const uint8_t *plane, size_t n, OpenChunk *open,
                       Encoded *encoded) {
  encoded->patch_count = 0;
  encoded->patch_bytes = 3;
  uint8_t *const ranks = open->symbol_bytes;
  open->symbols = ranks;
  if (!kernels().to_ranks(table, plane, ranks, n)) return true;
  uint8_t *const end = ranks + n;
  for (uint8_t *at = ranks;;) {
    at = static_cast<uint8_t *>(std::memchr(at, kMissing, static_cast<size_t>(end - at)));
    if (!at) return true;
    const size_t position = static_cast<size_t>(at - ranks);
    if (!add_patch(open, encoded, position, plane[position])) return false;
    *at = 0;
  }
}

uint8_t most_frequent(const ByteTable &table) {
  return static_cast<uint8_t>(std::max_element(table.frequency, table.frequency + 256) - table.frequency);
}

// Calls patch(position) for every symbol without a frequency, until it returns false.
template <typename Patch>
bool for_each_missing(const ByteTable &table, const uint8_t *symbols, size_t n, const Patch &patch) {
  const auto next = [&](size_t at) { return at + kernels().find_missing(table, symbols + at, n - at); };
  for (size_t at = next(0); at < n; at = next(at + 1))
    if (!patch(at)) return false;
  return true;
}

// Plane bytes as symbols of the table; those without a frequency become the most frequent one and a patch.
// False if there are too many patches.
bool bytes_and_patches(const ByteTable &table, const uint8_t *plane, size_t n, OpenChunk *open,
                       Encoded *encoded) {
  encoded->patch_count = 0;
  encoded->patch_bytes = 3;
  open->symbols = plane;
  const uint8_t fill = most_frequent(table);
  return for_each_missing(table, plane, n, [&](size_t i) {
    if (encoded->patch_count == 0) {
      std::memcpy(open->symbol_bytes, plane, n);
      open->symbols = open->symbol_bytes;
    }
    open->symbol_bytes[i] = fill;
    return add_patch(open, encoded, i, plane[i]);
  });
}

bool add_joint_patch(OpenChunk *open, Encoded *encoded, size_t position) {
  if (encoded->patch_count == UINT16_MAX) return false;
  const uint16_t head =
      static_cast<uint16_t>(open->planes[0][position] << 2 | open->planes[1][position] >> 6);
  uint8_t *patch = open->patches + 4 * encoded->patch_count++;
  store_u16(patch, static_cast<uint16_t>(position));
  store_u16(patch + 2, head);
  return true;
}

// Planes 0 and 1 as joint symbols and packed values. False if there are too many patches.
bool joint_and_patches(const TableCache &table, size_t n, OpenChunk *open, Encoded *encoded) {
  encoded->patch_count = 0;
  encoded->patch_bytes = 4;
  uint8_t *const plane0 = open->planes[0], *const plane1 = open->planes[1];
  const size_t blocks = (n + 127) / 128;
  // Units that complete the last block; the values of missing units are 0 (§4.6).
  std::memset(plane0 + n, table.base, blocks * 128 - n);
  std::memset(plane1 + n, 0, blocks * 128 - n);
  const uint8_t fill = most_frequent(table.byte);
  uint8_t *const symbols = open->symbol_bytes;
  open->symbols = symbols;
  if (!kernels().split_joint(plane0, plane1, table.base, fill, symbols, open->six, blocks))
    return for_each_missing(table.byte, symbols, n, [&](size_t i) {
      symbols[i] = fill;
      return add_joint_patch(open, encoded, i);
    });
  for (size_t i = 0; i < n; i++) {
    const uint8_t above = static_cast<uint8_t>(plane0[i] - table.base);
    if (above < 64 && table.byte.frequency[symbols[i]]) continue;
    if (!add_joint_patch(open, encoded, i)) return false;
    symbols[i] = fill;
  }
  return true;
}

// Whether a sample of the plane promises that a table of its own pays.
bool may_compress(const uint8_t *plane, size_t n) {
  if (n < 512) return false;
  Histogram sample = {};
  add_histogram(plane, n, 64, n >= 8192 ? 512 : 64, sample);
  uint64_t total = 0, bits = 0;
  const Log2 log2;
  for (uint32_t c : sample) total += c;
  const uint32_t log_total = log2(static_cast<uint32_t>(total));
  for (uint32_t c : sample)
    if (c) bits += c * uint64_t{log_total - log2(c)};
  // A sample of uniform bytes looks up to 256 / 2 ln 2 bits short of 8 a byte; 3 % covers that and the table.
  return (bits >> 16) < total * 8 * 97 / 100;
}

// Mode local: a table of the plane's own. False if it does not pay.
bool encode_local(int p, const uint8_t *plane, size_t n, OpenChunk *open, ChunkWriter *writer) {
  if (!may_compress(plane, n)) return false;
  Histogram histogram;
  full_histogram(plane, n, histogram);
  uint8_t table[kMaxByteTableBytes];
  uint64_t cost;
  size_t used = plan_byte_table(histogram, 12, table, &cost);
  if (!used || used + kStateBytes + cost / 8 + n / 100 >= n) return false;
  read_byte_table(table, used, &open->local_table, &used);
  Encoded encoded = {};
  encoded.patch_bytes = 3;
  start_stream(open, nullptr, &encoded.stream);
  encode_down<ByteCoder>(open->local_table, plane, n, 0, &encoded.stream);
  finish_stream(open, &encoded);
  if (used + encoded.size() >= n) return false;
  writer->record(p, Mode::kLocal, 0, 0, encoded.word_count);
  writer->append(table, used);
  writer->align();
  append_stream(*open, encoded, writer);
  return true;
}

// A plane without the frame's table: constant, local or raw. Returns the mode.
Mode encode_plain(int p, const uint8_t *plane, size_t n, OpenChunk *open, ChunkWriter *writer) {
  writer->align();
  if (is_constant(plane, n)) {
    writer->record(p, Mode::kConstant, plane[0], 0, 0);
    return Mode::kConstant;
  }
  if (encode_local(p, plane, n, open, writer)) return Mode::kLocal;
  writer->record(p, Mode::kRaw, 0, 0, 0);
  writer->append(plane, n);
  return Mode::kRaw;
}

// Symbols and patches of plane 0, if it is to have a stream with the frame's table: sets `head` and
// `payload`.
void prepare_head(OpenChunk *open) {
  const TableCache &table = *open->chunk->table;
  const size_t n = open->chunk->units;
  open->head = Mode::kRaw;
  if (table.kind == TableKind::kNone || is_constant(open->plane0, n)) return;
  Encoded *const encoded = &open->encoded;
  if (table.kind == TableKind::kJoint) {
    if (n < 2 * 128 || !joint_and_patches(table, n, open, encoded)) return;
    open->head = Mode::kJoint;
    open->payload = open->six + six_bytes(n) - kPayloadBytes;
  } else if (table.kind == TableKind::kRank) {
    if (ranks_and_patches(table.rank, open->plane0, n, open, encoded)) open->head = Mode::kRank;
  } else {
    if (bytes_and_patches(table.byte, open->plane0, n, open, encoded)) open->head = Mode::kByte;
  }
}

// Everything before the stream of plane 0.
void open_chunk(const EncodeChunk &chunk, OpenChunk *open) {
  const Layout &layout = *chunk.layout;
  const size_t n = chunk.units;
  open->chunk = &chunk;
  open->writer = ChunkWriter(chunk.dst ? chunk.dst : open->bytes, layout.width);
  for (int p = 0; p < kMaxWidth; p++) open->planes[p] = open->plane_bytes[p];
  // The last plane is the first section (§4), and is most often raw.
  if (layout.width > 1) {
    open->planes[layout.width - 1] = open->writer.at();
    kernels().split[layout.rotate][log2_width(layout.width)](chunk.src, open->planes, n);
  }
  open->plane0 = layout.width > 1 ? open->planes[0] : chunk.src;
  for (int p = layout.width; p-- > 2;) encode_plain(p, open->planes[p], n, open, &open->writer);
  open->payload = nullptr;
  prepare_head(open);
  if (open->head == Mode::kJoint || layout.width == 1) return;
  // Where plane 1 is raw, its last bytes move into the payload of plane 0's stream.
  const Mode plane1 = encode_plain(1, open->planes[1], n, open, &open->writer);
  if (plane1 == Mode::kRaw && n >= kPayloadBytes) open->payload = open->planes[1] + n - kPayloadBytes;
}

// Appends plane 0's stream, and plane 1 where both are joint. False if that does not pay.
bool append_head(OpenChunk *open) {
  const Encoded &encoded = open->encoded;
  ChunkWriter *const writer = &open->writer;
  const size_t n = open->chunk->units;
  if (open->head == Mode::kJoint) {
    const size_t six = six_bytes(n) - kPayloadBytes;
    if (encoded.size() + six >= 2 * n) return false;
    writer->align();
    writer->record(1, Mode::kSix, 0, 0, 0);
    writer->append(open->six, six);
  } else {
    if (encoded.size() >= n) return false;
    if (open->payload) writer->drop(kPayloadBytes);
  }
  writer->align();
  writer->record(0, open->head, 0, encoded.patch_count, encoded.word_count);
  append_stream(*open, encoded, writer);
  return true;
}

void close_chunk(EncodeChunk *chunk, OpenChunk *open) {
  if (open->head == Mode::kRaw || !append_head(open)) {
    if (open->head == Mode::kJoint) encode_plain(1, open->planes[1], chunk->units, open, &open->writer);
    encode_plain(0, open->plane0, chunk->units, open, &open->writer);
  }
  open->writer.align();
  chunk->bytes = open->writer.begin();
  chunk->size = open->writer.size();
}

}  // namespace

class EncodeScratch {
 public:
  OpenChunk open[kEncodeInterleave];
};

EncodeScratchPtr make_encode_scratch() { return EncodeScratchPtr(new (std::nothrow) EncodeScratch); }
void EncodeScratchDeleter::operator()(EncodeScratch *scratch) const { delete scratch; }

void encode_chunks(EncodeChunk *chunks, int count, EncodeScratch *scratch) {
  OpenChunk *ranks[kEncodeInterleave], *bytes[kEncodeInterleave];
  int rank_count = 0, byte_count = 0;
  for (int k = 0; k < count; k++) {
    OpenChunk *const open = &scratch->open[k];
    open_chunk(chunks[k], open);
    open->encoded.stream.reads = reinterpret_cast<uintptr_t>(chunks[k].next);
    open->encoded.stream.read_width = chunks[k].next ? static_cast<size_t>(chunks[k].layout->width) : 0;
    if (open->head == Mode::kRank) ranks[rank_count++] = open;
    if (open->head == Mode::kByte || open->head == Mode::kJoint) bytes[byte_count++] = open;
  }
  if (rank_count) encode_heads<RankCoder>(ranks, rank_count);
  if (byte_count) encode_heads<ByteCoder>(bytes, byte_count);
  for (int k = 0; k < count; k++) close_chunk(&chunks[k], &scratch->open[k]);
}

}  // namespace nz
