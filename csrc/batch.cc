// The C interface: jobs of chunks, run by several threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <thread>
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

// Hands out the chunks of jobs in order.
class Tasks {
 public:
  template <typename Job>
  Tasks(const Job *jobs, size_t count) {
    first_.reserve(count + 1);
    uint64_t total = 0;
    for (size_t j = 0; j < count; j++) {
      first_.push_back(total);
      if (jobs[j].status == NZ_OK) total += chunk_count(jobs[j]);
    }
    first_.push_back(total);
  }

  template <typename Job>
  static uint64_t chunk_count(const Job &job) {
    const uint64_t size = uint64_t{1} << job.chunk_log2;
    return job.units / size + (job.units % size != 0);
  }

  uint64_t total() const { return first_.back(); }

  // The next chunk: its job, and its number there. False when there is none.
  bool take(size_t *job, uint64_t *chunk) {
    return find(next_.fetch_add(1, std::memory_order_relaxed), job, chunk);
  }

  // The chunk that will be handed out after `others` more.
  bool peek(uint64_t others, size_t *job, uint64_t *chunk) const {
    return find(next_.load(std::memory_order_relaxed) + others, job, chunk);
  }

 private:
  bool find(uint64_t task, size_t *job, uint64_t *chunk) const {
    if (task >= total()) return false;
    // The last job that begins at or before the task; jobs without tasks share their successor's number.
    *job = static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), task) - first_.begin()) - 1;
    *chunk = task - first_[*job];
    return true;
  }

  std::vector<uint64_t> first_;  // task number of each job, and the total
  std::atomic<uint64_t> next_{0};
};

// Layout and table blob of every job, checked before any thread starts.
struct Prepared {
  const Layout *layout = nullptr;
  TableBlob blob;
};

template <typename Job>
nz_status prepare(const Job &job, Prepared *prepared, nz_status bad_table) {
  prepared->layout = find_layout(job.layout);
  if (!prepared->layout || job.chunk_log2 < 10 || job.chunk_log2 > 16 || (job.table_bytes && !job.table))
    return NZ_ARGUMENT;
  return read_blob(*prepared->layout, job.table, job.table_bytes, &prepared->blob) ? NZ_OK : bad_table;
}

template <typename Job>
std::vector<Prepared> prepare_all(Job *jobs, size_t count, nz_status bad_table) {
  std::vector<Prepared> prepared(count);
  for (size_t j = 0; j < count; j++) jobs[j].status = prepare(jobs[j], &prepared[j], bad_table);
  return prepared;
}

template <typename Job>
int32_t first_failure(const Job *jobs, size_t count) {
  for (size_t j = 0; j < count; j++)
    if (jobs[j].status != NZ_OK) return jobs[j].status;
  return NZ_OK;
}

// Runs a function of the interface, which must not throw: bad_alloc and length_error, all that can come, mean
// that memory ran out. No job is then taken for done.
template <typename Job, typename Work>
int32_t run_jobs(Job *jobs, size_t count, const Work &work) {
  try {
    work();
  } catch (const std::exception &) {
    for (size_t j = 0; j < count; j++) jobs[j].status = NZ_MEMORY;
  }
  return first_failure(jobs, count);
}

// Where the chunks of an encode job go: each behind its predecessor, so in order, while encoding goes on side
// by side. `placed` counts chunks whose place is known.
struct Placement {
  std::atomic<uint64_t> placed{0};
  uint64_t end = 0;  // of the chunks placed so far; owned by whoever's turn it is
  std::atomic<bool> full{false};
};

// Where a chunk goes if that is known already and has room for any chunk, else null: it will have to be
// copied.
uint8_t *known_place(const nz_encode_job &job, const Placement &placement, uint64_t chunk, size_t bound) {
  if (placement.placed.load(std::memory_order_acquire) != chunk) return nullptr;
  return job.capacity - placement.end < bound ? nullptr : job.dst + placement.end;
}

void place_chunk(nz_encode_job *job, Placement *placement, uint64_t chunk, const uint8_t *bytes,
                 size_t size) {
  // Chunks are handed out in order, so whoever holds the predecessor is at work and this wait is short.
  while (placement->placed.load(std::memory_order_acquire) != chunk) std::this_thread::yield();
  const uint64_t at = placement->end;
  const bool fits = size <= job->capacity - at;
  placement->end = fits ? at + size : at;
  if (!fits) placement->full.store(true, std::memory_order_relaxed);
  placement->placed.store(chunk + 1, std::memory_order_release);
  if (fits && bytes != job->dst + at) std::memcpy(job->dst + at, bytes, size);
}

// What a thread works with. Kept for its next call: fresh memory costs a small tensor more than coding it.
class Workbench {
 public:
  // Null if memory is short.
  ChunkDecoder *decoder() { return chunk_decoder(&decoder_); }
  EncodeScratch *encode_scratch() {
    if (!encode_) encode_ = make_encode_scratch();
    return encode_.get();
  }
  // Tables to encode with, empty: they are recognised by their addresses, and others may lie there now.
  TableCache *tables() {
    if (!tables_) tables_.reset(new (std::nothrow) TableCache[kEncodeInterleave]);
    for (int k = 0; tables_ && k < kEncodeInterleave; k++) tables_[k].forget();
    return tables_.get();
  }

 private:
  ChunkDecoderPtr decoder_;
  EncodeScratchPtr encode_;
  std::unique_ptr<TableCache[]> tables_;
};

Workbench &this_thread() {
  static thread_local Workbench bench;
  return bench;
}

// The table of a chunk: `other`, if that is it, or `own`, loaded.
const TableCache *table_for(const TableBlob &blob, uint64_t chunk, const TableCache &other, TableCache *own) {
  if (other.holds(blob, chunk)) return &other;
  own->load(blob, chunk);
  return own;
}

// Where the original bytes begin that this thread will likely encode next, if all threads take turns.
uintptr_t address_of_next(const nz_encode_job *jobs, const std::vector<Prepared> &prepared,
                          const Tasks &tasks, int32_t threads) {
  const auto others = static_cast<uint64_t>(std::max(threads, 1) - 1) * kernels().encode_interleave;
  size_t j;
  uint64_t chunk;
  if (!tasks.peek(others, &j, &chunk)) return 0;
  const auto width = static_cast<uint64_t>(prepared[j].layout->width);
  return reinterpret_cast<uintptr_t>(jobs[j].src) + (chunk << jobs[j].chunk_log2) * width;
}

void encode_tasks(nz_encode_job *jobs, const std::vector<Prepared> &prepared, Tasks *tasks, int32_t threads,
                  std::vector<Placement> *placements) {
  EncodeScratch *const scratch = this_thread().encode_scratch();
  TableCache *const tables = this_thread().tables();
  if (!scratch || !tables) return;
  for (;;) {
    EncodeChunk chunks[kEncodeInterleave];
    size_t job[kEncodeInterleave];
    uint64_t number[kEncodeInterleave];
    int count = 0;
    for (; count < kernels().encode_interleave && tasks->take(&job[count], &number[count]); count++) {
      const nz_encode_job &from = jobs[job[count]];
      const Prepared &its = prepared[job[count]];
      const uint64_t at = number[count] << from.chunk_log2;
      EncodeChunk &chunk = chunks[count];
      chunk.layout = its.layout;
      chunk.table = table_for(its.blob, from.first_chunk + number[count], tables[0], &tables[count]);
      chunk.src = from.src + at * static_cast<uint64_t>(its.layout->width);
      chunk.units = static_cast<size_t>(std::min(from.units - at, uint64_t{1} << from.chunk_log2));
      chunk.dst =
          known_place(from, (*placements)[job[count]], number[count], chunk_bound(*its.layout, chunk.units));
    }
    if (!count) return;
    encode_chunks(chunks, count, address_of_next(jobs, prepared, *tasks, threads), scratch);
    for (int k = 0; k < count; k++) {
      nz_encode_job *const to = &jobs[job[k]];
      const size_t size = chunks[k].units * static_cast<size_t>(chunks[k].layout->width);
      to->index[2 * number[k]] = static_cast<uint32_t>(chunks[k].size);
      to->index[2 * number[k] + 1] = static_cast<uint32_t>(kernels().checksum64(chunks[k].src, size));
      place_chunk(to, &(*placements)[job[k]], number[k], chunks[k].bytes, chunks[k].size);
    }
  }
}

// A chunk's length and checksum32.
const uint8_t *entry(const nz_decode_job &job, uint64_t chunk) {
  return reinterpret_cast<const uint8_t *>(job.index) + 8 * chunk;
}

// Offsets of a decode job's chunks; false if the lengths do not add up.
bool chunk_offsets(const nz_decode_job &job, std::vector<uint64_t> *offsets) {
  const uint64_t chunks = Tasks::chunk_count(job);
  offsets->resize(chunks + 1);
  uint64_t at = 0;
  for (uint64_t c = 0; c < chunks; c++) {
    (*offsets)[c] = at;
    at += load_u32(entry(job, c));
  }
  offsets->back() = at;
  return at == job.size;
}

// What decoding threads share.
struct DecodeWork {
  const nz_decode_job *jobs;
  const std::vector<Prepared> &prepared;
  std::vector<std::vector<uint64_t>> offsets;      // of each job's chunks
  mutable std::vector<std::atomic<uint64_t>> bad;  // lowest failing chunk of each job
  mutable std::atomic<uint64_t> done{0};           // chunks
};

// Records a failure; the lowest chunk wins.
void fail(std::atomic<uint64_t> *bad, uint64_t chunk) {
  uint64_t seen = bad->load();
  while (chunk < seen && !bad->compare_exchange_weak(seen, chunk)) {
  }
}

// The chunks of decode jobs, handed to one thread's decoder and judged.
class JobFeed final : public DecodeFeed {
 public:
  JobFeed(const DecodeWork &work, Tasks *tasks) : work_(work), tasks_(tasks) {}

  bool next(DecodeChunk *chunk) override {
    size_t j;
    uint64_t c;
    if (!tasks_->take(&j, &c)) return false;
    const nz_decode_job &job = work_.jobs[j];
    const std::vector<uint64_t> &offsets = work_.offsets[j];
    const uint64_t from = c << job.chunk_log2;
    chunk->job = j, chunk->number = c;
    chunk->layout = work_.prepared[j].layout;
    chunk->tables = &work_.prepared[j].blob;
    chunk->table_number = job.first_chunk + c;
    chunk->src = job.src + offsets[c];
    chunk->size = static_cast<size_t>(offsets[c + 1] - offsets[c]);
    chunk->slack = static_cast<size_t>(job.size - offsets[c + 1]);
    chunk->units = static_cast<size_t>(std::min(job.units - from, uint64_t{1} << job.chunk_log2));
    chunk->dst = job.dst + from * static_cast<uint64_t>(chunk->layout->width);
    return true;
  }

  void take(const DecodeChunk &, size_t, size_t, const uint8_t *) override {}

  void done(const DecodeChunk &chunk) override {
    const nz_decode_job &job = work_.jobs[chunk.job];
    bool good = chunk.status == NZ_OK;
    if (good && job.verify)
      good = static_cast<uint32_t>(
                 kernels().checksum64(chunk.dst, chunk.units * static_cast<size_t>(chunk.layout->width))) ==
             load_u32(entry(job, chunk.number) + 4);
    if (!good) fail(&work_.bad[chunk.job], chunk.number);
    work_.done++;
  }

 private:
  const DecodeWork &work_;
  Tasks *tasks_;
};

void encode_jobs(nz_encode_job *jobs, size_t count, int32_t threads) {
  const std::vector<Prepared> prepared = prepare_all(jobs, count, NZ_ARGUMENT);
  Tasks tasks(jobs, count);
  std::vector<Placement> placements(count);
  run_threads(threads, tasks.total(), [&] { encode_tasks(jobs, prepared, &tasks, threads, &placements); });
  for (size_t j = 0; j < count; j++) {
    if (jobs[j].status != NZ_OK) continue;
    jobs[j].written = placements[j].end;
    if (placements[j].full) jobs[j].status = NZ_ARGUMENT;
    if (placements[j].placed != Tasks::chunk_count(jobs[j])) jobs[j].status = NZ_MEMORY;
  }
}

void decode_jobs(nz_decode_job *jobs, size_t count, int32_t threads) {
  const std::vector<Prepared> prepared = prepare_all(jobs, count, NZ_CORRUPT);
  DecodeWork work{jobs, prepared, std::vector<std::vector<uint64_t>>(count),
                  std::vector<std::atomic<uint64_t>>(count)};
  for (size_t j = 0; j < count; j++) {
    jobs[j].bad_chunk = 0;
    work.bad[j] = UINT64_MAX;
    if (jobs[j].status == NZ_OK && !chunk_offsets(jobs[j], &work.offsets[j])) jobs[j].status = NZ_TRUNCATED;
  }
  Tasks tasks(jobs, count);
  run_threads(threads, tasks.total(), [&] {
    ChunkDecoder *const decoder = this_thread().decoder();
    JobFeed feed(work, &tasks);
    if (decoder) decode_chunks(feed, decoder);
  });
  for (size_t j = 0; j < count; j++) {
    if (jobs[j].status != NZ_OK) continue;
    if (work.done != tasks.total()) jobs[j].status = NZ_MEMORY;
    if (work.bad[j] == UINT64_MAX) continue;
    jobs[j].status = NZ_CORRUPT;
    jobs[j].bad_chunk = work.bad[j];
  }
}

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

int32_t nz_abi_version(void) { return NZ_ABI_VERSION; }

uint64_t nz_checksum64(const void *data, size_t size) { return kernels().checksum64(data, size); }

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

uint64_t nz_chunk_bound(int32_t layout, int32_t chunk_log2) {
  const Layout *found = find_layout(layout);
  if (!found || chunk_log2 < 10 || chunk_log2 > 16) return 0;
  return chunk_bound(*found, size_t{1} << chunk_log2);
}

int32_t nz_encode(nz_encode_job *jobs, size_t count, int32_t threads) {
  return run_jobs(jobs, count, [&] { encode_jobs(jobs, count, threads); });
}

int32_t nz_decode(nz_decode_job *jobs, size_t count, int32_t threads) {
  return run_jobs(jobs, count, [&] { decode_jobs(jobs, count, threads); });
}

}  // extern "C"
