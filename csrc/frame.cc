// Frames (spec §5): their headers, read and written, and whole ones coded.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <vector>

#include "chunk.h"
#include "kernels.h"
#include "layout.h"
#include "neuzip.h"
#include "plan.h"
#include "rans.h"
#include "thread_pool.h"

namespace nz {
namespace {

constexpr uint8_t kMagic[4] = {'N', 'Z', 'F', 'R'};
constexpr int kVersion = 1;
constexpr size_t kFixed = 40;  // bytes of a header before the shape
constexpr size_t kChecksumAt = 32;
constexpr int kMaxDimensions = 32;
constexpr int kMaxRatioLog2 = 17;  // §6: size ≤ 2^17 · frame_size
constexpr int kStored = 0, kPlanes = 1, kZstd = 2;
constexpr int kStoredLog2 = 20;  // chunk_log2 of what is not cut into planes: as large as it may be

uint64_t load_u64(const uint8_t *p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
void store_u64(uint8_t *p, uint64_t v) { std::memcpy(p, &v, sizeof v); }

uint64_t padded(uint64_t size) { return (size + 7) / 8 * 8; }

nz_status meaning(int32_t fault) {
  switch (fault) {
    case NZ_HEADER_GOOD:
      return NZ_OK;
    case NZ_HEADER_SHORT:
    case NZ_HEADER_CUT:
    case NZ_FRAME_CUT:
      return NZ_TRUNCATED;
    case NZ_HEADER_MAGIC:
    case NZ_HEADER_VERSION:
    case NZ_HEADER_REQUIRED:
    case NZ_HEADER_DTYPE:
    case NZ_HEADER_CODING:
      return NZ_UNSUPPORTED;
    default:
      return NZ_CORRUPT;
  }
}

const Layout &layout_of(const nz_frame &frame) { return kLayouts[find_dtype(frame.dtype)->layout]; }

uint64_t chunk_size(const nz_frame &frame) {
  const int width = frame.coding == kPlanes ? layout_of(frame).width : 1;
  return static_cast<uint64_t>(width) << frame.chunk_log2;
}

// Sets what follows from the size, the table blob's length and how chunks are made.
void measure(nz_frame *frame) {
  const uint64_t each = chunk_size(*frame);
  frame->chunks = frame->size / each + (frame->size % each != 0);
  frame->header_size =
      kFixed + 8 * static_cast<uint64_t>(frame->ndim) + frame->table_bytes + 8 * frame->chunks;
}

const uint8_t *table_of(const nz_frame &frame, const uint8_t *data) { return data + kFixed + 8 * frame.ndim; }
const uint8_t *index_of(const nz_frame &frame, const uint8_t *data) {
  return data + frame.header_size - 8 * frame.chunks;
}

// Whether the shape's elements fill exactly the original bytes.
bool shape_fits(const nz_frame &frame) {
  unsigned __int128 elements = 1;
  const uint64_t *const end = frame.shape + frame.ndim;
  if (std::find(frame.shape, end, 0) != end) return frame.size == 0;
  for (const uint64_t *length = frame.shape; length != end; length++) {
    elements *= *length;
    if (elements > UINT64_MAX) return false;  // more than 2^64 elements of at least 4 bits
  }
  return elements * static_cast<unsigned>(find_dtype(frame.dtype)->bits) ==
         static_cast<unsigned __int128>(frame.size) * 8;
}

// The first 40 bytes, as far as they can be checked alone.
int32_t read_fixed(const uint8_t *data, uint64_t size, nz_frame *frame) {
  if (size < kFixed) return NZ_HEADER_SHORT;
  frame->version = data[4], frame->dtype = data[5], frame->coding = data[6], frame->chunk_log2 = data[7];
  frame->required = load_u16(data + 8);
  frame->ndim = data[10], frame->level = data[11];
  frame->table_bytes = load_u32(data + 12);
  frame->size = load_u64(data + 16), frame->frame_size = load_u64(data + 24);
  if (std::memcmp(data, kMagic, sizeof kMagic)) return NZ_HEADER_MAGIC;
  if (frame->version != kVersion) return NZ_HEADER_VERSION;
  if (frame->required) return NZ_HEADER_REQUIRED;
  if (!find_dtype(frame->dtype)) return NZ_HEADER_DTYPE;
  if (frame->coding > kZstd) return NZ_HEADER_CODING;
  const int largest = frame->coding == kPlanes ? 16 : 20;
  if (frame->chunk_log2 < 10 || frame->chunk_log2 > largest || frame->ndim > kMaxDimensions)
    return NZ_HEADER_RANGE;
  const uint64_t least = frame->size >> kMaxRatioLog2;
  if (least + (frame->size != least << kMaxRatioLog2) > frame->frame_size) return NZ_HEADER_RATIO;
  measure(frame);
  return frame->header_size > frame->frame_size ? NZ_HEADER_SIZE : NZ_HEADER_GOOD;
}

bool checksum_matches(const nz_frame &frame, const uint8_t *data) {
  std::vector<uint8_t> header(data, data + frame.header_size);
  store_u64(header.data() + kChecksumAt, 0);
  return kernels().checksum64(header.data(), header.size()) == load_u64(data + kChecksumAt);
}

uint64_t chunk_bytes(const nz_frame &frame, const uint8_t *data) {
  const uint8_t *const index = index_of(frame, data);
  uint64_t sum = 0;
  for (uint64_t c = 0; c < frame.chunks; c++) sum += load_u32(index + 8 * c);
  return sum;
}

// A stored chunk has its original length, a zstd chunk at most that.
bool lengths_are_possible(nz_frame *frame, const uint8_t *data) {
  const uint64_t each = chunk_size(*frame);
  for (uint64_t c = 0; c < frame->chunks; c++) {
    const uint64_t most = std::min(each, frame->size - c * each),
                   length = load_u32(index_of(*frame, data) + 8 * c);
    if (frame->coding == kStored ? length == most : length <= most) continue;
    frame->bad_chunk = c;
    return false;
  }
  return true;
}

// Everything else of a header that is there.
int32_t check_header(nz_frame *frame, const uint8_t *data) {
  if (!checksum_matches(*frame, data)) return NZ_HEADER_CHECKSUM;
  for (int i = 0; i < frame->ndim; i++) frame->shape[i] = load_u64(data + kFixed + 8 * i);
  if (!shape_fits(*frame)) return NZ_HEADER_SHAPE;
  if (frame->coding == kPlanes && !layout_of(*frame).planes) return NZ_HEADER_PLANES;
  if (frame->coding != kPlanes && frame->table_bytes) return NZ_HEADER_TABLE;
  if (padded(frame->header_size + chunk_bytes(*frame, data)) != frame->frame_size) return NZ_HEADER_LENGTHS;
  if (frame->coding != kPlanes && !lengths_are_possible(frame, data)) return NZ_HEADER_LENGTH;
  return NZ_HEADER_GOOD;
}

int32_t check_whole(const nz_frame &frame, const uint8_t *data, uint64_t size) {
  if (size < frame.frame_size) return NZ_FRAME_CUT;
  if (size > frame.frame_size) return NZ_FRAME_LONG;
  const uint8_t *const end = data + frame.header_size + chunk_bytes(frame, data);
  return std::all_of(end, data + size, [](uint8_t b) { return b == 0; }) ? NZ_HEADER_GOOD : NZ_FRAME_PADDING;
}

int32_t read_header(const uint8_t *data, uint64_t size, bool whole, nz_frame *frame) {
  int32_t fault = read_fixed(data, size, frame);
  if (!fault && size < frame->header_size) fault = NZ_HEADER_CUT;
  if (!fault) fault = check_header(frame, data);
  if (!fault && whole) fault = check_whole(*frame, data, size);
  return fault;
}

void write_header(nz_frame *frame, const uint8_t *table, const uint32_t *index, uint8_t *dst) {
  measure(frame);
  uint64_t end = frame->header_size;
  for (uint64_t c = 0; c < frame->chunks; c++) end += index[2 * c];
  frame->frame_size = padded(end);
  std::memset(dst, 0, kFixed);
  std::memcpy(dst, kMagic, sizeof kMagic);
  dst[4] = kVersion, dst[5] = static_cast<uint8_t>(frame->dtype),
  dst[6] = static_cast<uint8_t>(frame->coding);
  dst[7] = static_cast<uint8_t>(frame->chunk_log2);
  dst[10] = static_cast<uint8_t>(frame->ndim), dst[11] = static_cast<uint8_t>(frame->level);
  store_u32(dst + 12, frame->table_bytes);
  store_u64(dst + 16, frame->size);
  store_u64(dst + 24, frame->frame_size);
  std::memcpy(dst + kFixed, frame->shape, 8 * static_cast<size_t>(frame->ndim));
  uint8_t *const after_shape = dst + kFixed + 8 * frame->ndim;
  if (frame->table_bytes) std::memcpy(after_shape, table, frame->table_bytes);
  if (frame->chunks) std::memcpy(after_shape + frame->table_bytes, index, 8 * frame->chunks);
  store_u64(dst + kChecksumAt, kernels().checksum64(dst, frame->header_size));
}

// --- whole frames

nz_status decode_stored(const nz_frame &frame, const nz_decode_frame_job &job) {
  const uint64_t each = chunk_size(frame);
  const uint8_t *const from = job.src + frame.header_size, *const index = index_of(frame, job.src);
  for (uint64_t c = 0; c < frame.chunks; c++) {
    const uint64_t n = std::min(each, frame.size - c * each);
    std::memcpy(job.dst + c * each, from + c * each, n);
    const auto checksum = static_cast<uint32_t>(kernels().checksum64(job.dst + c * each, n));
    if (job.verify && checksum != load_u32(index + 8 * c + 4)) return NZ_CORRUPT;
  }
  return NZ_OK;
}

// Whether a frame has the dtype and the shape that it is to have.
bool is_of(const nz_frame &frame, const nz_decode_frame_job &job) {
  return !job.shape || (frame.dtype == job.dtype && frame.ndim == job.ndim &&
                        std::equal(frame.shape, frame.shape + frame.ndim, job.shape));
}

void decode_frames(nz_decode_frame_job *jobs, size_t count, int32_t threads) {
  std::vector<nz_decode_job> coded;
  std::vector<size_t> owner;
  for (size_t j = 0; j < count; j++) {
    nz_decode_frame_job &job = jobs[j];
    nz_frame frame;
    job.status = meaning(read_header(job.src, job.size, true, &frame));
    if (job.status != NZ_OK) continue;
    const bool fits = job.capacity == frame.size && is_of(frame, job);
    job.status = !fits ? NZ_ARGUMENT : frame.coding == kZstd ? NZ_UNSUPPORTED : NZ_OK;
    if (job.status != NZ_OK) continue;
    if (frame.coding == kStored) job.status = decode_stored(frame, job);
    if (frame.coding == kStored) continue;
    nz_decode_job run = {};
    run.src = job.src + frame.header_size, run.size = chunk_bytes(frame, job.src);
    run.index = reinterpret_cast<const uint32_t *>(index_of(frame, job.src));
    run.units = frame.size / static_cast<uint64_t>(layout_of(frame).width);
    run.table = table_of(frame, job.src), run.table_bytes = frame.table_bytes;
    run.layout = layout_of(frame).id, run.chunk_log2 = frame.chunk_log2;
    run.verify = job.verify, run.dst = job.dst;
    coded.push_back(run);
    owner.push_back(j);
  }
  nz_decode(coded.data(), coded.size(), threads);
  for (size_t k = 0; k < coded.size(); k++) jobs[owner[k]].status = coded[k].status;
}

// A tensor on its way to a frame.
struct Tensor {
  nz_frame frame = {};
  std::vector<uint8_t> table;
  std::vector<uint32_t> index;
};

// Bytes that suffice for the blob of a tensor: an entry for each segment (plan.h).
size_t table_bound(uint64_t chunks) {
  constexpr size_t kEntry = kEntryHeader + kMaxByteTableBytes + 3;
  static_assert(kBlobHeader + kMaxSegments * kEntry <= NZ_TABLE_CAPACITY, "plan() writes as much");
  return kBlobHeader + kEntry * std::min<uint64_t>(chunks / kSegmentChunks + 1, kMaxSegments);
}

uint64_t frame_bound(const nz_frame &frame, const Layout &layout) {
  if (frame.coding != kPlanes) return padded(frame.header_size + frame.size);
  const uint64_t overhead = chunk_bound(layout, size_t{1} << frame.chunk_log2) - chunk_size(frame);
  return padded(frame.header_size + table_bound(frame.chunks) + frame.size + frame.chunks * overhead);
}

// The frame of `size` bytes of a dtype, as far as it is known beforehand. False if there is none.
bool start_frame(int32_t dtype, int32_t ndim, uint64_t size, int32_t chunk_log2, nz_frame *frame) {
  const DType *const found = find_dtype(dtype);
  if (!found || !kLayouts[found->layout].planes || chunk_log2 < 10 || chunk_log2 > 16) return false;
  if (ndim < 0 || ndim > kMaxDimensions) return false;
  frame->dtype = dtype, frame->ndim = ndim, frame->size = size;
  frame->coding = size < NZ_SMALL ? kStored : kPlanes;
  frame->chunk_log2 = size < NZ_SMALL ? kStoredLog2 : chunk_log2;
  measure(frame);
  return true;
}

// Everything before the chunks are coded.
nz_status open_tensor(const nz_encode_frame_job &job, Tensor *tensor) {
  nz_frame &frame = tensor->frame;
  if (!start_frame(job.dtype, job.ndim, job.size, job.chunk_log2, &frame)) return NZ_ARGUMENT;
  std::copy_n(job.shape, job.ndim, frame.shape);
  frame.level = job.level;
  const Layout &layout = layout_of(frame);
  if (!shape_fits(frame) || job.capacity < frame_bound(frame, layout)) return NZ_ARGUMENT;
  tensor->index.resize(2 * frame.chunks);
  if (frame.coding != kPlanes) return NZ_OK;
  tensor->table.resize(table_bound(frame.chunks));
  const uint64_t units = frame.size / static_cast<uint64_t>(layout.width);
  const int32_t used = nz_plan(layout.id, job.level, frame.chunk_log2, job.src, units, tensor->table.data());
  if (used < 0) return static_cast<nz_status>(used);
  tensor->table.resize(static_cast<size_t>(used));
  frame.table_bytes = static_cast<uint32_t>(used);
  measure(&frame);
  return NZ_OK;
}

nz_encode_job run_of(const nz_encode_frame_job &job, Tensor *tensor) {
  const nz_frame &frame = tensor->frame;
  nz_encode_job run = {};
  run.src = job.src;
  run.units = frame.size / static_cast<uint64_t>(layout_of(frame).width);
  run.table = tensor->table.data(), run.table_bytes = frame.table_bytes;
  run.layout = layout_of(frame).id, run.chunk_log2 = frame.chunk_log2;
  run.dst = job.dst + frame.header_size, run.capacity = job.capacity - frame.header_size;
  run.index = tensor->index.data();
  return run;
}

void store(const nz_encode_frame_job &job, Tensor *tensor) {
  if (!job.size) return;
  std::memcpy(job.dst + tensor->frame.header_size, job.src, job.size);
  tensor->index[0] = static_cast<uint32_t>(job.size);
  tensor->index[1] = static_cast<uint32_t>(kernels().checksum64(job.src, job.size));
}

void close_tensor(nz_encode_frame_job *job, uint64_t chunks_size, Tensor *tensor) {
  nz_frame &frame = tensor->frame;
  write_header(&frame, tensor->table.data(), tensor->index.data(), job->dst);
  const uint64_t end = frame.header_size + chunks_size;
  std::memset(job->dst + end, 0, frame.frame_size - end);
  job->written = frame.frame_size;
}

void encode_frames(nz_encode_frame_job *jobs, size_t count, int32_t threads) {
  std::vector<Tensor> tensors(count);
  for (size_t j = 0; j < count; j++) jobs[j].status = NZ_MEMORY;
  std::atomic<size_t> next{0};
  run_threads(threads, count, [&] {
    for (size_t j; (j = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      try {
        jobs[j].status = open_tensor(jobs[j], &tensors[j]);
      } catch (const std::exception &) {  // memory ran out: the job says so already
      }
    }
  });
  std::vector<nz_encode_job> runs;
  std::vector<size_t> owner;
  for (size_t j = 0; j < count; j++) {
    if (jobs[j].status != NZ_OK) continue;
    if (tensors[j].frame.coding == kPlanes) {
      runs.push_back(run_of(jobs[j], &tensors[j]));
      owner.push_back(j);
    } else {
      store(jobs[j], &tensors[j]);
      close_tensor(&jobs[j], jobs[j].size, &tensors[j]);
    }
  }
  nz_encode(runs.data(), runs.size(), threads);
  for (size_t k = 0; k < runs.size(); k++) {
    nz_encode_frame_job *const job = &jobs[owner[k]];
    job->status = runs[k].status;
    if (job->status == NZ_OK) close_tensor(job, runs[k].written, &tensors[owner[k]]);
  }
}

template <typename Job>
int32_t run_frames(Job *jobs, size_t count, int32_t threads, void (*work)(Job *, size_t, int32_t)) {
  try {
    work(jobs, count, threads);
  } catch (const std::exception &) {  // memory ran out
    for (size_t j = 0; j < count; j++) jobs[j].status = NZ_MEMORY;
  }
  for (size_t j = 0; j < count; j++)
    if (jobs[j].status != NZ_OK) return jobs[j].status;
  return NZ_OK;
}

}  // namespace
}  // namespace nz

using namespace nz;

extern "C" {

void nz_checksums32(const uint8_t *data, const uint64_t *starts, const uint64_t *sizes, size_t count,
                    uint32_t *checksums) {
  const auto checksum64 = kernels().checksum64;
  for (size_t i = 0; i < count; i++)
    checksums[i] = static_cast<uint32_t>(checksum64(data + starts[i], sizes[i]));
}

int32_t nz_read_header(const uint8_t *data, uint64_t size, int32_t whole, nz_frame *frame) {
  *frame = {};
  try {
    frame->fault = read_header(data, size, whole, frame);
  } catch (const std::exception &) {
    return NZ_MEMORY;
  }
  return meaning(frame->fault);
}

int32_t nz_write_header(nz_frame *frame, const uint8_t *table, const uint32_t *index, uint8_t *dst) {
  if (!find_dtype(frame->dtype) || frame->ndim < 0 || frame->ndim > kMaxDimensions) return NZ_ARGUMENT;
  if (frame->chunk_log2 < 10 || frame->chunk_log2 > 20) return NZ_ARGUMENT;
  write_header(frame, table, index, dst);
  return NZ_OK;
}

uint64_t nz_frame_bound(int32_t dtype, int32_t ndim, uint64_t size, int32_t chunk_log2) {
  nz_frame frame = {};
  return start_frame(dtype, ndim, size, chunk_log2, &frame) ? frame_bound(frame, layout_of(frame)) : 0;
}

int32_t nz_decode_frames(nz_decode_frame_job *jobs, size_t count, int32_t threads) {
  return run_frames(jobs, count, threads, decode_frames);
}

int32_t nz_encode_frames(nz_encode_frame_job *jobs, size_t count, int32_t threads) {
  return run_frames(jobs, count, threads, encode_frames);
}

}  // extern "C"
