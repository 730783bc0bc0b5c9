// Bounds-checked parsing of a chunk (spec §4). No length in the file is trusted beyond the chunk's own end.
#include "chunk.h"
#include "rans.h"

namespace nz {
namespace {

// The unread rest of a chunk.
class Cursor {
 public:
  Cursor(const uint8_t *begin, size_t size) : begin_(begin), at_(begin), end_(begin + size) {}

  // The next n bytes, or null if there are fewer.
  const uint8_t *take(size_t n) {
    if (n > left()) return nullptr;
    const uint8_t *p = at_;
    at_ += n;
    return p;
  }

  // Skips zero bytes up to a multiple of 4; false if they are not zero or not there.
  bool align() {
    while ((at_ - begin_) % 4) {
      if (at_ == end_ || *at_++) return false;
    }
    return true;
  }

  const uint8_t *at() const { return at_; }
  size_t left() const { return static_cast<size_t>(end_ - at_); }

 private:
  const uint8_t *begin_, *at_, *end_;
};

bool mode_allowed(Mode mode, int plane, TableKind kind, Mode plane0) {
  switch (mode) {
    case Mode::kRaw:
    case Mode::kConstant:
    case Mode::kLocal:  // plane 1 beside joint is six
      return !(plane == 1 && plane0 == Mode::kJoint);
    case Mode::kRank:
      return plane == 0 && kind == TableKind::kRank;
    case Mode::kByte:
      return plane == 0 && kind == TableKind::kByte;
    case Mode::kJoint:
      return plane == 0 && kind == TableKind::kJoint;
    case Mode::kSix:
      return plane == 1 && plane0 == Mode::kJoint;
  }
  return false;
}

bool parse_record(const uint8_t *record, int plane, TableKind kind, const ChunkView &view, PlaneView *out) {
  if (record[0] > static_cast<uint8_t>(Mode::kSix)) return false;
  *out = {};
  out->mode = static_cast<Mode>(record[0]);
  const Mode plane0 = plane == 0 ? out->mode : view.planes[0].mode;
  if (!mode_allowed(out->mode, plane, kind, plane0)) return false;
  const uint8_t param = record[1];
  out->patch_count = load_u16(record + 2);
  out->word_count = load_u32(record + 4);
  if (param && out->mode != Mode::kConstant) return false;
  out->constant = param;
  if (!has_stream(out->mode)) return !out->patch_count && !out->word_count;
  out->patch_bytes = out->mode == Mode::kJoint ? 4 : 3;
  // A symbol takes at most one word (§4.1).
  return out->word_count <= view.units && out->patch_count <= view.units;
}

size_t stored_bytes(Mode mode, size_t units) { return mode == Mode::kSix ? six_bytes(units) : units; }

// Whether plane 0's stream carries the last bytes of plane 1's section (§4.5).
bool carries_payload(const ChunkView &view, int width) {
  if (width == 1) return false;
  const Mode head = view.planes[0].mode, mode = view.planes[1].mode;
  return (head == Mode::kRank || head == Mode::kByte || head == Mode::kJoint) &&
         (mode == Mode::kRaw || mode == Mode::kSix) && stored_bytes(mode, view.units) >= kPayloadBytes;
}

bool patches_ascend(const PlaneView &plane, size_t units) {
  size_t from = 0;
  for (size_t i = 0; i < plane.patch_count; i++) {
    const uint8_t *patch = plane.patches + i * plane.patch_bytes;
    const size_t position = load_u16(patch);
    if (position < from || position >= units) return false;
    if (plane.mode == Mode::kJoint && load_u16(patch + 2) > 1023) return false;
    from = position + 1;
  }
  return true;
}

bool parse_section(int p, ChunkView *view, Cursor *cursor) {
  PlaneView &plane = view->planes[p];
  if (plane.mode == Mode::kRaw || plane.mode == Mode::kSix) {
    plane.stored = stored_bytes(plane.mode, view->units);
    if (p == 1 && view->payload) plane.stored -= kPayloadBytes;
    plane.bytes = cursor->take(plane.stored);
    return plane.bytes != nullptr;
  }
  if (!has_stream(plane.mode)) return true;
  if (plane.mode == Mode::kLocal) {
    if (cursor->left() < kByteTableHeader) return false;
    plane.table_bytes = kByteTableHeader + 2 * size_t{load_u16(cursor->at() + 2)};
    plane.table = cursor->take(plane.table_bytes);
    if (!plane.table || !cursor->align()) return false;
  }
  plane.states = cursor->take(kStateBytes);
  plane.words = cursor->take(2 * plane.word_count);
  plane.patches = cursor->take(plane.patch_bytes * plane.patch_count);
  if (!plane.states || !plane.words || !plane.patches) return false;
  return patches_ascend(plane, view->units);
}

}  // namespace

nz_status parse_chunk(const Layout &layout, TableKind kind, const uint8_t *chunk, size_t size, size_t units,
                      ChunkView *view) {
  Cursor cursor(chunk, size);
  view->units = units;
  for (int p = 0; p < layout.width; p++) {
    const uint8_t *record = cursor.take(kRecordBytes);
    if (!record || !parse_record(record, p, kind, *view, &view->planes[p])) return NZ_CORRUPT;
  }
  view->payload = carries_payload(*view, layout.width);
  for (int p = layout.width; p-- > 0;)
    if (!cursor.align() || !parse_section(p, view, &cursor)) return NZ_CORRUPT;
  return cursor.align() && cursor.left() == 0 ? NZ_OK : NZ_CORRUPT;
}

}  // namespace nz
