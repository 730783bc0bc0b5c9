// Encoding of a chunk: units to planes, each plane in the mode that makes it smallest.
#include <algorithm>
#include <cstring>
#include <new>

#include "chunk.h"
#include "histogram.h"
#include "rans.h"

namespace nz {

class EncodeScratch {
 public:
  uint8_t planes[kMaxWidth][kMaxUnits];
  uint8_t symbols[kMaxUnits];  // ranks, or symbols of the joint mode
  uint8_t six[kMaxUnits / 128 * 96];
  uint8_t below[64];             // the loops may overwrite 64 bytes below the words (kernels.h)
  uint8_t words[2 * kMaxUnits];  // filled from the end
  uint8_t patches[4 * kMaxUnits];
  ByteTable local_table;
  uint8_t chunk[kMaxWidth * (kMaxUnits + kRecordBytes + 4) + 4];
};

EncodeScratchPtr make_encode_scratch() { return EncodeScratchPtr(new (std::nothrow) EncodeScratch); }
void EncodeScratchDeleter::operator()(EncodeScratch *scratch) const { delete scratch; }

namespace {

// A stream that has been encoded into the scratch.
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
    std::memcpy(at_, bytes, n);
    at_ += n;
  }
  void drop(size_t n) { at_ -= n; }
  size_t size() const { return static_cast<size_t>(at_ - begin_); }

 private:
  uint8_t *begin_, *at_;
};

bool is_constant(const uint8_t *bytes, size_t n) {
  return n == 0 || std::memcmp(bytes, bytes + 1, n - 1) == 0;
}

// Starts the lanes at 2^16, or at 2^16 | payload (§4.5).
void start_stream(EncodeScratch *scratch, const uint8_t *payload, EncodeStream *stream) {
  for (int lane = 0; lane < kLanes; lane++)
    stream->state[lane] = kLow | (payload ? load_u16(payload + 2 * lane) : 0);
  stream->next = scratch->words + sizeof scratch->words;
}

void finish_stream(EncodeScratch *scratch, Encoded *encoded) {
  encoded->word_count =
      static_cast<size_t>(scratch->words + sizeof scratch->words - encoded->stream.next) / 2;
}

void encode_ranks(const RankTable &table, const uint8_t *ranks, size_t n, const uint8_t *payload,
                  EncodeScratch *scratch, Encoded *encoded) {
  start_stream(scratch, payload, &encoded->stream);
  const size_t steps = n / kLanes;
  for (size_t i = n; i-- > steps * kLanes;)
    put_rank(table, &encoded->stream, static_cast<int>(i % kLanes), ranks[i]);
  kernels().encode_rank(table, &encoded->stream, ranks, steps);
  finish_stream(scratch, encoded);
}

void encode_bytes(const ByteTable &table, const uint8_t *symbols, size_t n, const uint8_t *payload,
                  EncodeScratch *scratch, Encoded *encoded) {
  start_stream(scratch, payload, &encoded->stream);
  const size_t steps = n / kLanes;
  for (size_t i = n; i-- > steps * kLanes;)
    put_byte(table, &encoded->stream, static_cast<int>(i % kLanes), symbols[i]);
  kernels().encode_byte(table, &encoded->stream, symbols, steps);
  finish_stream(scratch, encoded);
}

void append_stream(const EncodeScratch &scratch, const Encoded &encoded, ChunkWriter *writer) {
  writer->append(encoded.stream.state, kStateBytes);
  writer->append(encoded.stream.next, 2 * encoded.word_count);
  writer->append(scratch.patches, encoded.patch_count * encoded.patch_bytes);
}

// Adds a patch of a plane byte; false if there are too many for a record.
bool add_patch(EncodeScratch *scratch, Encoded *encoded, size_t position, uint8_t value) {
  if (encoded->patch_count == UINT16_MAX) return false;
  uint8_t *patch = scratch->patches + 3 * encoded->patch_count++;
  store_u16(patch, static_cast<uint16_t>(position));
  patch[2] = value;
  return true;
}

// Plane 0 as ranks; those missing become rank 0 and a patch.
bool ranks_and_patches(const RankTable &table, const uint8_t *plane, size_t n, EncodeScratch *scratch,
                       Encoded *encoded) {
  encoded->patch_count = 0;
  encoded->patch_bytes = 3;
  if (!kernels().to_ranks(table, plane, scratch->symbols, n)) return true;
  uint8_t *const end = scratch->symbols + n;
  for (uint8_t *at = scratch->symbols;;) {
    at = static_cast<uint8_t *>(std::memchr(at, kMissing, static_cast<size_t>(end - at)));
    if (!at) return true;
    const size_t position = static_cast<size_t>(at - scratch->symbols);
    if (!add_patch(scratch, encoded, position, plane[position])) return false;
    *at = 0;
  }
}

uint8_t most_frequent(const ByteTable &table) {
  return static_cast<uint8_t>(std::max_element(table.frequency, table.frequency + 256) - table.frequency);
}

// Calls patch(position) for every symbol without a frequency, until it returns false. Such symbols are rare,
// so eight are looked at together.
template <typename Patch>
bool for_each_missing(const ByteTable &table, const uint8_t *symbols, size_t n, const Patch &patch) {
  uint8_t missing[256];
  for (int s = 0; s < 256; s++) missing[s] = !table.frequency[s];
  for (size_t at = 0; at < n; at += 8) {
    const size_t end = std::min(at + 8, n);
    uint8_t any = 0;
    for (size_t i = at; i < end; i++) any |= missing[symbols[i]];
    if (!any) continue;
    for (size_t i = at; i < end; i++)
      if (missing[symbols[i]] && !patch(i)) return false;
  }
  return true;
}

// Plane bytes as symbols of the table; those without a frequency become the most frequent one and a patch.
// False if there are too many patches.
bool bytes_and_patches(const ByteTable &table, const uint8_t *plane, size_t n, EncodeScratch *scratch,
                       Encoded *encoded) {
  encoded->patch_count = 0;
  encoded->patch_bytes = 3;
  std::memcpy(scratch->symbols, plane, n);
  const uint8_t fill = most_frequent(table);
  return for_each_missing(table, plane, n, [&](size_t i) {
    scratch->symbols[i] = fill;
    return add_patch(scratch, encoded, i, plane[i]);
  });
}

bool add_joint_patch(EncodeScratch *scratch, Encoded *encoded, size_t position) {
  if (encoded->patch_count == UINT16_MAX) return false;
  const uint16_t head =
      static_cast<uint16_t>(scratch->planes[0][position] << 2 | scratch->planes[1][position] >> 6);
  uint8_t *patch = scratch->patches + 4 * encoded->patch_count++;
  store_u16(patch, static_cast<uint16_t>(position));
  store_u16(patch + 2, head);
  return true;
}

// Planes 0 and 1 as joint symbols and packed values. False if there are too many patches.
bool joint_and_patches(const TableCache &table, size_t n, EncodeScratch *scratch, Encoded *encoded) {
  encoded->patch_count = 0;
  encoded->patch_bytes = 4;
  uint8_t *const plane0 = scratch->planes[0], *const plane1 = scratch->planes[1];
  const size_t blocks = (n + 127) / 128;
  // Units that complete the last block; the values of missing units are 0 (§4.6).
  std::memset(plane0 + n, table.base, blocks * 128 - n);
  std::memset(plane1 + n, 0, blocks * 128 - n);
  const uint8_t fill = most_frequent(table.byte);
  uint8_t *const symbols = scratch->symbols;
  if (!kernels().split_joint(plane0, plane1, table.base, fill, symbols, scratch->six, blocks))
    return for_each_missing(table.byte, symbols, n, [&](size_t i) {
      symbols[i] = fill;
      return add_joint_patch(scratch, encoded, i);
    });
  for (size_t i = 0; i < n; i++) {
    const uint8_t above = static_cast<uint8_t>(plane0[i] - table.base);
    if (above < 64 && table.byte.frequency[symbols[i]]) continue;
    if (!add_joint_patch(scratch, encoded, i)) return false;
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
  for (uint32_t c : sample) total += c;
  for (uint32_t c : sample)
    if (c) bits += c * uint64_t{log2_q16(static_cast<uint32_t>(total)) - log2_q16(c)};
  // A sample of uniform bytes looks up to 256 / 2 ln 2 bits short of 8 a byte; 3 % covers that and the table.
  return (bits >> 16) < total * 8 * 97 / 100;
}

// Mode local: a table of the plane's own. False if it does not pay.
bool encode_local(int p, const uint8_t *plane, size_t n, EncodeScratch *scratch, ChunkWriter *writer) {
  if (!may_compress(plane, n)) return false;
  Histogram histogram;
  full_histogram(plane, n, histogram);
  uint8_t table[kMaxByteTableBytes];
  uint64_t cost;
  size_t used = plan_byte_table(histogram, 12, table, &cost);
  if (!used || used + kStateBytes + cost / 8 + n / 100 >= n) return false;
  read_byte_table(table, used, &scratch->local_table, &used);
  Encoded encoded = {};
  encoded.patch_bytes = 3;
  encode_bytes(scratch->local_table, plane, n, nullptr, scratch, &encoded);
  if (used + encoded.size() >= n) return false;
  writer->record(p, Mode::kLocal, 0, 0, encoded.word_count);
  writer->append(table, used);
  writer->align();
  append_stream(*scratch, encoded, writer);
  return true;
}

// A plane without the frame's table: constant, local or raw. Returns the mode.
Mode encode_plain(int p, const uint8_t *plane, size_t n, EncodeScratch *scratch, ChunkWriter *writer) {
  writer->align();
  if (is_constant(plane, n)) {
    writer->record(p, Mode::kConstant, plane[0], 0, 0);
    return Mode::kConstant;
  }
  if (encode_local(p, plane, n, scratch, writer)) return Mode::kLocal;
  writer->record(p, Mode::kRaw, 0, 0, 0);
  writer->append(plane, n);
  return Mode::kRaw;
}

// Plane 0 with the frame's rank or byte table; false if it does not pay. Where plane 1 is raw its last bytes,
// which the writer has just appended, move into the payload.
bool encode_head(const TableCache &table, size_t n, bool payload, EncodeScratch *scratch,
                 ChunkWriter *writer) {
  const uint8_t *plane = scratch->planes[0];
  const uint8_t *carried = payload ? scratch->planes[1] + n - kPayloadBytes : nullptr;
  Encoded encoded;
  const bool rank = table.kind == TableKind::kRank;
  if (rank) {
    if (!ranks_and_patches(table.rank, plane, n, scratch, &encoded)) return false;
    encode_ranks(table.rank, scratch->symbols, n, carried, scratch, &encoded);
  } else {
    if (!bytes_and_patches(table.byte, plane, n, scratch, &encoded)) return false;
    encode_bytes(table.byte, scratch->symbols, n, carried, scratch, &encoded);
  }
  if (encoded.size() >= n) return false;
  if (payload) writer->drop(kPayloadBytes);
  writer->align();
  writer->record(0, rank ? Mode::kRank : Mode::kByte, 0, encoded.patch_count, encoded.word_count);
  append_stream(*scratch, encoded, writer);
  return true;
}

// Planes 0 and 1 in modes joint and six; false if that does not pay. Planes 2 and up have been written.
bool encode_joint(const TableCache &table, size_t n, EncodeScratch *scratch, ChunkWriter *writer) {
  if (n < 256 || is_constant(scratch->planes[0], n)) return false;
  Encoded encoded;
  if (!joint_and_patches(table, n, scratch, &encoded)) return false;
  const size_t six = six_bytes(n);
  encode_bytes(table.byte, scratch->symbols, n, scratch->six + six - kPayloadBytes, scratch, &encoded);
  if (encoded.size() + six - kPayloadBytes >= 2 * n) return false;
  writer->align();
  writer->record(1, Mode::kSix, 0, 0, 0);
  writer->append(scratch->six, six - kPayloadBytes);
  writer->align();
  writer->record(0, Mode::kJoint, 0, encoded.patch_count, encoded.word_count);
  append_stream(*scratch, encoded, writer);
  return true;
}

}  // namespace

size_t encode_chunk(const Layout &layout, const TableCache &table, const uint8_t *src, size_t units,
                    EncodeScratch *scratch, const uint8_t **chunk) {
  uint8_t *planes[kMaxWidth];
  for (int p = 0; p < kMaxWidth; p++) planes[p] = scratch->planes[p];
  kernels().split[layout.rotate][log2_width(layout.width)](src, planes, units);
  ChunkWriter writer(scratch->chunk, layout.width);
  for (int p = layout.width; p-- > 2;) encode_plain(p, planes[p], units, scratch, &writer);
  if (table.kind != TableKind::kJoint || !encode_joint(table, units, scratch, &writer)) {
    Mode plane1 = Mode::kConstant;
    if (layout.width > 1) plane1 = encode_plain(1, planes[1], units, scratch, &writer);
    const bool payload = plane1 == Mode::kRaw && units >= kPayloadBytes;
    const bool coded = table.kind == TableKind::kRank || table.kind == TableKind::kByte;
    if (!coded || is_constant(planes[0], units) || !encode_head(table, units, payload, scratch, &writer))
      encode_plain(0, planes[0], units, scratch, &writer);
  }
  writer.align();
  *chunk = scratch->chunk;
  return writer.size();
}

}  // namespace nz
