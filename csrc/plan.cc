#include "plan.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "chunk.h"
#include "histogram.h"
#include "kernels.h"
#include "rans.h"

namespace nz {
namespace {

constexpr uint64_t kBlock = 64;           // units sampled in a row
constexpr uint64_t kAhead = 12;           // places whose memory is fetched while others are counted
constexpr uint64_t kMinSample = 1 << 13;  // of a segment, if it has as many
constexpr uint64_t kMaxSample = 1 << 23;  // of a segment, so that counts of all segments together fit 32 bits

// What was sampled of a segment, a run of chunks: plane 0, and the head of the joint mode.
struct Sample {
  uint64_t first_chunk;
  uint64_t units;
  Histogram plane0;
  uint32_t head[1024];

  void add(const Sample &other) {
    units += other.units;
    for (int i = 0; i < 256; i++) plane0[i] += other.plane0[i];
    for (int i = 0; i < 1024; i++) head[i] += other.head[i];
  }
};

// Adds the sample of a segment that begins at `src`.
void take_sample(const Layout &layout, bool heads, const uint8_t *src, const Segment &segment,
                 Sample *sample) {
  uint8_t storage[kMaxWidth][kBlock];
  uint8_t *planes[kMaxWidth];
  for (int p = 0; p < kMaxWidth; p++) planes[p] = storage[p];
  const Split split = kernels().split[layout.rotate][log2_width(layout.width)];
  const uint64_t blocks = (segment.units + kBlock - 1) / kBlock, width = static_cast<uint64_t>(layout.width);
  ByteCounter counter;
  const auto place = [&](uint64_t b) { return b * blocks / segment.taken * kBlock; };
  for (uint64_t b = 0; b < segment.taken; b++) {
    const uint64_t at = place(b), n = std::min(kBlock, segment.units - at);
    // The places lie far apart: without this most of the time is spent waiting for memory.
    if (b + kAhead < segment.taken)
      for (uint64_t i = 0; i < kBlock * width; i += 64)
        __builtin_prefetch(src + place(b + kAhead) * width + i);
    split(src + at * width, planes, n);
    counter.add(storage[0], n);
    if (heads)
      for (uint64_t i = 0; i < n; i++) sample->head[storage[0][i] << 2 | storage[1][i] >> 6]++;
    sample->units += n;
  }
  counter.add_to(sample->plane0);
}

// Bits of the histogram's symbols at their order-0 entropy.
uint64_t entropy_bits(const Histogram &histogram) {
  uint64_t total = 0, bits = 0;
  const Log2 log2;
  for (uint32_t c : histogram) total += c;
  const uint32_t log_total = total ? log2(static_cast<uint32_t>(total)) : 0;
  for (uint32_t c : histogram)
    if (c) bits += uint64_t{c} * (log_total - log2(c));
  return bits >> 16;
}

// What a table of its own costs a segment, in bits on the sample's scale: its bytes, and for every symbol
// what the sample flatters it by (half of log2 e each within the sample and outside of it) and may have
// missed.
uint64_t table_price(TableKind kind, const Histogram &histogram, uint64_t sampled, uint64_t units) {
  uint64_t symbols = 0;
  for (uint32_t c : histogram) symbols += c != 0;
  const bool rank = kind == TableKind::kRank;
  const uint64_t bytes = kEntryHeader + (rank ? kRankTableBytes : kByteTableHeader + 2 * symbols);
  return 8 * bytes * sampled / units + (rank ? 2 : 4) * symbols;
}

Sample together(const std::vector<Sample> &samples) {
  Sample all = {};
  for (const Sample &s : samples) all.add(s);
  return all;
}

// Joins neighbouring segments whose statistics are too alike for a table each to pay.
std::vector<Sample> merge_segments(const std::vector<Sample> &samples, TableKind kind, uint64_t units) {
  uint64_t sampled = 0;
  for (const Sample &s : samples) sampled += s.units;
  std::vector<Sample> merged{samples.front()};
  for (size_t i = 1; i < samples.size(); i++) {
    Sample both = merged.back();
    both.add(samples[i]);
    const uint64_t apart = entropy_bits(merged.back().plane0) + entropy_bits(samples[i].plane0);
    if (entropy_bits(both.plane0) <= apart + table_price(kind, both.plane0, sampled, units))
      merged.back() = both;
    else
      merged.push_back(samples[i]);
  }
  return merged;
}

// A segment's table of one kind, and the bits its sample's planes 0 (and, joint, 1) would take.
struct Candidate {
  uint8_t base = 0;
  size_t size = 0;
  uint64_t cost = 0;
  uint8_t bytes[kMaxByteTableBytes];
};

// The window of 64 exponents ends two above the largest sampled, for the unsampled larger ones.
Candidate joint_candidate(const Sample &sample, int bits) {
  constexpr uint64_t kJointPatchBits = 36;  // 32 and the symbol coded in its place
  Candidate c;
  int top = 255;
  while (top > 0 && !sample.plane0[top]) top--;
  c.base = static_cast<uint8_t>(std::clamp<int>(top + 2 - 63, 0, kMaxBase));
  Histogram symbols = {};
  uint64_t inside = 0;
  for (int s = 0; s < 256; s++) inside += symbols[s] = sample.head[4 * c.base + s];
  c.size = plan_byte_table(symbols, bits, c.bytes, &c.cost);
  // The other modes leave plane 1 raw, 8 bits a unit; joint leaves 6.
  c.cost += 6 * sample.units + (sample.units - inside) * kJointPatchBits;
  return c;
}

Candidate make_candidate(TableKind kind, const Layout &layout, int32_t level, const Sample &sample) {
  // Where plane 0 is the whole unit, its many symbols are worth one bit more than the fastest table has.
  const int bits = level == NZ_LEVEL_MAX ? kMaxByteBits : layout.width == 1 ? 13 : 12;
  if (kind == TableKind::kJoint) return joint_candidate(sample, bits);
  Candidate c;
  c.size = kind == TableKind::kRank ? plan_rank_table(sample.plane0, c.bytes, &c.cost)
                                    : plan_byte_table(sample.plane0, bits, c.bytes, &c.cost);
  if (layout.width > 1) c.cost += 8 * sample.units;
  return c;
}

// A kind of table, and the table of that kind for all segments together.
struct Choice {
  TableKind kind = TableKind::kNone;
  Candidate table;
};

// The kind of table the whole tensor is coded with; kNone if none saves enough to make up for itself and for
// the states of every chunk's stream.
Choice choose_kind(const Layout &layout, int32_t level, int chunk_log2, const Sample &all, uint64_t units) {
  const bool max = level == NZ_LEVEL_MAX;
  const uint64_t bits = all.units * (layout.width > 1 ? 16 : 8);
  Choice best;
  uint64_t best_cost = bits - bits / 200;
  const uint64_t states =
      (((units - 1) >> chunk_log2) + 1) * (kStateBytes - (layout.width > 1 ? kPayloadBytes : 0));
  const auto consider = [&](TableKind kind, uint64_t margin) {
    const Candidate c = make_candidate(kind, layout, level, all);
    // The sample's cost, and its share of what the tensor pays once.
    const uint64_t cost = c.cost + 8 * (states + kEntryHeader + c.size) * all.units / units;
    if (!c.size || cost + margin >= best_cost) return;
    best.kind = kind;
    best.table = c;
    best_cost = cost;
  };
  consider(TableKind::kRank, 0);
  // Ranks decode fastest, so another table has to be worth it.
  consider(TableKind::kByte, best.kind == TableKind::kNone || max ? 0 : bits / 500);
  if (max && layout.joint) consider(TableKind::kJoint, 0);
  return best;
}

// The blob for a tensor of which the segments' samples are known.
int32_t plan_samples(const Layout &layout, int32_t level, int chunk_log2, std::vector<Sample> samples,
                     uint64_t units, uint8_t *blob) {
  if (samples.empty()) return 0;
  const bool one = samples.size() == 1;
  const Choice choice = choose_kind(layout, level, chunk_log2, one ? samples[0] : together(samples), units);
  const TableKind kind = choice.kind;
  if (kind == TableKind::kNone) return 0;
  if (!one) samples = merge_segments(samples, kind, units);
  size_t at = kBlobHeader;
  uint16_t count = 0;
  for (const Sample &sample : samples) {
    const Candidate c = one ? choice.table : make_candidate(kind, layout, level, sample);
    if (!c.size) continue;  // a constant segment: a neighbour's table will do
    std::memset(blob + at, 0, kEntryHeader);
    store_u32(blob + at, count ? static_cast<uint32_t>(sample.first_chunk) : 0);
    blob[at + 4] = c.base;
    std::memcpy(blob + at + kEntryHeader, c.bytes, c.size);
    at += kEntryHeader + c.size;
    while (at % 4) blob[at++] = 0;
    count++;
  }
  if (!count) return 0;
  blob[0] = static_cast<uint8_t>(kind);
  blob[1] = 0;
  store_u16(blob + 2, count);
  return static_cast<int32_t>(at);
}

}  // namespace

std::vector<Segment> segments(const Layout &layout, int chunk_log2, uint64_t units) {
  // Below this the states alone outweigh what coding can save.
  if (units < 256) return {};
  const uint64_t chunks = ((units - 1) >> chunk_log2) + 1;
  const uint64_t groups = (chunks + kSegmentChunks - 1) / kSegmentChunks;
  const uint64_t stride = kSegmentChunks * ((groups + kMaxSegments - 1) / kMaxSegments);
  std::vector<Segment> all;
  for (uint64_t chunk = 0; chunk < chunks; chunk += stride) {
    const uint64_t from = chunk << chunk_log2, n = std::min(units - from, stride << chunk_log2);
    // Plane 0 of a layout with eight exponent bits has few symbols; where it has mantissa bits too, there are
    // many and a rare one is easily missed.
    const uint64_t share = std::min(n / (layout.joint ? 32 : 8), kMaxSample);
    const uint64_t want = std::max(std::min(n, kMinSample), share);
    all.push_back({from, n, std::min((n + kBlock - 1) / kBlock, (want + kBlock - 1) / kBlock)});
  }
  return all;
}

int32_t plan(const Layout &layout, int32_t level, int chunk_log2, const uint8_t *src, uint64_t units,
             uint8_t *blob) {
  const bool heads = level == NZ_LEVEL_MAX && layout.joint;
  std::vector<Sample> samples;
  for (const Segment &segment : segments(layout, chunk_log2, units)) {
    samples.emplace_back();
    samples.back().first_chunk = segment.first >> chunk_log2;
    const uint64_t at = segment.first * static_cast<uint64_t>(layout.width);
    take_sample(layout, heads, src + at, segment, &samples.back());
  }
  return plan_samples(layout, level, chunk_log2, std::move(samples), units, blob);
}

int32_t plan_counts(const Layout &layout, int32_t level, int chunk_log2, const uint32_t *counts,
                    uint64_t units, uint8_t *blob) {
  std::vector<Sample> samples;
  for (const Segment &segment : segments(layout, chunk_log2, units)) {
    Sample sample = {};
    sample.first_chunk = segment.first >> chunk_log2;
    std::copy_n(counts, 256, sample.plane0);
    std::copy_n(counts + 256, 1024, sample.head);
    for (uint32_t c : sample.plane0) sample.units += c;
    samples.push_back(sample);
    counts += NZ_SEGMENT_COUNTS;
  }
  return plan_samples(layout, level, chunk_log2, std::move(samples), units, blob);
}

const TableBlob::Entry &TableBlob::of_chunk(uint64_t chunk) const {
  const auto after = std::upper_bound(entries.begin(), entries.end(), chunk,
                                      [](uint64_t c, const Entry &e) { return c < e.first_chunk; });
  return *(after - 1);
}

namespace {

// Checks an entry and returns its length, or 0 if it breaks a rule.
size_t read_entry(TableKind kind, const uint8_t *bytes, size_t size, TableBlob::Entry *entry) {
  if (size < kEntryHeader || bytes[5] || bytes[6] || bytes[7]) return 0;
  *entry = {load_u32(bytes), bytes[4], bytes + kEntryHeader, 0};
  if (entry->base > (kind == TableKind::kJoint ? kMaxBase : 0)) return 0;
  if (kind == TableKind::kRank) {
    RankTable table;
    if (size < kEntryHeader + kRankTableBytes || !read_rank_table(entry->table, &table)) return 0;
    entry->size = kRankTableBytes;
  } else if (!check_byte_table(entry->table, size - kEntryHeader, &entry->size)) {
    return 0;
  }
  size_t end = kEntryHeader + entry->size;
  for (; end % 4; end++)
    if (end >= size || bytes[end]) return 0;
  return end;
}

}  // namespace

bool read_blob(const Layout &layout, const uint8_t *bytes, size_t size, TableBlob *blob) {
  if (size == 0) return true;
  if (size < kBlobHeader || bytes[0] < 1 || bytes[0] > 3 || bytes[1]) return false;
  blob->kind = static_cast<TableKind>(bytes[0]);
  if (blob->kind == TableKind::kJoint && !layout.joint) return false;
  const size_t count = load_u16(bytes + 2);
  size_t at = kBlobHeader;
  for (size_t i = 0; i < count; i++) {
    TableBlob::Entry entry;
    const size_t used = read_entry(blob->kind, bytes + at, size - at, &entry);
    if (!used) return false;
    if (i == 0 ? entry.first_chunk != 0 : entry.first_chunk <= blob->entries.back().first_chunk) return false;
    blob->entries.push_back(entry);
    at += used;
  }
  return count > 0 && at == size;
}

void TableCache::load(const TableBlob &blob, uint64_t chunk) {
  kind = blob.kind;
  if (kind == TableKind::kNone) return;
  const TableBlob::Entry &entry = blob.of_chunk(chunk);
  base = entry.base;
  if (entry.table == loaded_) return;
  loaded_ = entry.table;
  size_t used;
  if (kind == TableKind::kRank)
    read_rank_table(entry.table, &rank);
  else
    read_byte_table(entry.table, entry.size, &byte, &used);
}

namespace {

// Checks what the functions about tables are given and calls one of them.
template <typename Work>
int32_t run_plan(int32_t layout, int32_t level, int32_t chunk_log2, const Work &work) {
  const Layout *found = find_layout(layout);
  if (!found || (level != NZ_LEVEL_DEFAULT && level != NZ_LEVEL_MAX) || chunk_log2 < 10 || chunk_log2 > 16)
    return NZ_ARGUMENT;
  try {
    return work(*found);
  } catch (const std::bad_alloc &) {
    return NZ_MEMORY;
  }
}

}  // namespace
}  // namespace nz

using namespace nz;

extern "C" {

int32_t nz_plan(int32_t layout, int32_t level, int32_t chunk_log2, const uint8_t *src, uint64_t units,
                uint8_t *table) {
  return run_plan(layout, level, chunk_log2,
                  [&](const Layout &found) { return plan(found, level, chunk_log2, src, units, table); });
}

int32_t nz_plan_counts(int32_t layout, int32_t level, int32_t chunk_log2, const uint32_t *counts,
                       uint64_t units, uint8_t *table) {
  return run_plan(layout, level, chunk_log2, [&](const Layout &found) {
    return plan_counts(found, level, chunk_log2, counts, units, table);
  });
}

int32_t nz_plan_segments(int32_t layout, int32_t chunk_log2, uint64_t units, uint64_t *out) {
  return run_plan(layout, NZ_LEVEL_DEFAULT, chunk_log2, [&](const Layout &found) {
    const std::vector<Segment> all = segments(found, chunk_log2, units);
    for (const Segment &s : all) *out++ = s.first, *out++ = s.units, *out++ = s.taken;
    return static_cast<int32_t>(all.size());
  });
}

int32_t nz_table_entries(int32_t layout, const uint8_t *table, uint32_t table_bytes, uint32_t *entries) {
  return run_plan(layout, NZ_LEVEL_DEFAULT, 16, [&](const Layout &found) -> int32_t {
    TableBlob blob;
    if (!read_blob(found, table, table_bytes, &blob)) return NZ_CORRUPT;
    for (const TableBlob::Entry &e : blob.entries) {
      *entries++ = e.first_chunk;
      *entries++ = static_cast<uint32_t>(e.table - table - kEntryHeader);
    }
    return static_cast<int32_t>(blob.entries.size());
  });
}

}  // extern "C"
