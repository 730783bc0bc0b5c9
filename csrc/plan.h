// The table blob of a frame (spec §5): chosen for a tensor, and read back.
#ifndef NEUZIP_PLAN_H
#define NEUZIP_PLAN_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "layout.h"
#include "neuzip.h"
#include "table.h"

namespace nz {

enum class TableKind : uint8_t { kNone = 0, kRank = 1, kByte = 2, kJoint = 3 };

constexpr uint8_t kMaxBase = 255 - 63;  // the joint window of 64 exponents ends at 255
constexpr size_t kBlobHeader = 4;
constexpr size_t kEntryHeader = 8;
constexpr uint64_t kSegmentChunks = 4;  // chunks that are decoded side by side should share a table
constexpr uint64_t kMaxSegments = 256;  // that a tensor is cut into, each with at most one table

inline int log2_width(int width) { return width == 1 ? 0 : width == 2 ? 1 : width == 4 ? 2 : 3; }

// Writes the blob for a tensor, at most NZ_TABLE_CAPACITY bytes; returns its length.
int32_t plan(const Layout &layout, int32_t level, int chunk_log2, const uint8_t *src, uint64_t units,
             uint8_t *blob);

// The same from the counts of what was sampled, NZ_SEGMENT_COUNTS for each segment.
int32_t plan_counts(const Layout &layout, int32_t level, int chunk_log2, const uint32_t *counts,
                    uint64_t units, uint8_t *blob);

// A run of chunks and how much of it is looked at: 64 units in a row at `taken` places.
struct Segment {
  uint64_t first;  // unit
  uint64_t units;
  uint64_t taken;
};

// The segments of a tensor; none if it is too small for tables.
std::vector<Segment> segments(const Layout &layout, int chunk_log2, uint64_t units);

// A blob whose every entry has been checked. It points into the caller's bytes.
struct TableBlob {
  struct Entry {
    uint32_t first_chunk;
    uint8_t base;
    const uint8_t *table;
    size_t size;
  };
  TableKind kind = TableKind::kNone;
  std::vector<Entry> entries;

  // The entry of a chunk's table.
  const Entry &of_chunk(uint64_t chunk) const;
};

// False if the blob breaks a rule of the spec, other than that its chunks exist.
bool read_blob(const Layout &layout, const uint8_t *bytes, size_t size, TableBlob *blob);

// A table in the form the loops want. Chunks mostly come in order, so the last one is kept.
class TableCache {
 public:
  TableKind kind = TableKind::kNone;
  uint8_t base = 0;
  RankTable rank;  // of kRank
  ByteTable byte;  // of kByte and kJoint

  void load(const TableBlob &blob, uint64_t chunk);
  // Whether load() has nothing to do.
  bool holds(const TableBlob &blob, uint64_t chunk) const {
    return blob.kind != TableKind::kNone && blob.of_chunk(chunk).table == loaded_;
  }
  // To be called where tables may have moved: a table is recognised by its address.
  void forget() { loaded_ = nullptr; }

 private:
  const uint8_t *loaded_ = nullptr;
};

}  // namespace nz

#endif
