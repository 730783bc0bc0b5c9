// The C interface: jobs of chunks, run by several threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "chunk.h"
#include "kernels.h"
#include "layout.h"
#include "neuzip.h"
#include "plan.h"

namespace nz {
namespace {

constexpr int kMaxThreads = 256;

// Cuts jobs into tasks of a few chunks and hands them out in order.
class Tasks {
 public:
  template <typename Job>
  Tasks(const Job *jobs, size_t count, uint64_t chunks_per_task) : chunks_per_task_(chunks_per_task) {
    first_.reserve(count + 1);
    uint64_t total = 0;
    for (size_t j = 0; j < count; j++) {
      first_.push_back(total);
      const uint64_t chunks = chunk_count(jobs[j]);
      if (jobs[j].status == NZ_OK) total += (chunks + chunks_per_task - 1) / chunks_per_task;
    }
    first_.push_back(total);
  }

  template <typename Job>
  static uint64_t chunk_count(const Job &job) {
    const uint64_t size = uint64_t{1} << job.chunk_log2;
    return job.units / size + (job.units % size != 0);
  }

  uint64_t total() const { return first_.back(); }

  // The next task: its job and first chunk. False when there is none.
  bool take(size_t *job, uint64_t *first_chunk) {
    const uint64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= total()) return false;
    // The last job that begins at or before the task; jobs without tasks share their successor's number.
    *job = static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), task) - first_.begin()) - 1;
    *first_chunk = (task - first_[*job]) * chunks_per_task_;
    return true;
  }

 private:
  const uint64_t chunks_per_task_;
  std::vector<uint64_t> first_;  // task number of each job, and the total
  std::atomic<uint64_t> next_{0};
};

// Runs work() on up to `threads` threads, this one included. Threads that cannot be had are done without: the
// tasks are taken by whoever is there. `work` must not throw.
template <typename Work>
void run_threads(int threads, uint64_t tasks, const Work &work) {
  const uint64_t wanted =
      std::min<uint64_t>({static_cast<uint64_t>(std::clamp(threads, 1, kMaxThreads)), tasks});
  std::vector<std::thread> others;
  others.reserve(wanted);
  try {
    for (uint64_t t = 1; t < wanted; t++) others.emplace_back(work);
  } catch (const std::system_error &) {
  } catch (const std::bad_alloc &) {
  }
  work();
  for (std::thread &thread : others) thread.join();
}

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

void place_chunk(nz_encode_job *job, Placement *placement, uint64_t chunk, const uint8_t *bytes,
                 size_t size) {
  // Chunks are handed out in order, so whoever holds the predecessor is at work and this wait is short.
  while (placement->placed.load(std::memory_order_acquire) != chunk) std::this_thread::yield();
  const uint64_t at = placement->end;
  const bool fits = size <= job->capacity - at;
  if (fits)
    placement->end = at + size;
  else
    placement->full.store(true, std::memory_order_relaxed);
  placement->placed.store(chunk + 1, std::memory_order_release);
  if (fits) std::memcpy(job->dst + at, bytes, size);
}

// What a thread works with. Kept for its next call: fresh memory costs a small tensor more than coding it.
struct Workbench {
  DecodeScratchPtr decode;
  EncodeScratchPtr encode;
  std::unique_ptr<TableCache> table;
};

Workbench &this_thread() {
  static thread_local Workbench bench;
  return bench;
}

// This thread's, with what `scratch` names made if it was not; null if memory is short.
template <typename Scratch>
Workbench *workbench(Scratch Workbench::*scratch, Scratch (*make)()) {
  Workbench &bench = this_thread();
  if (!(bench.*scratch)) bench.*scratch = make();
  if (!bench.table) bench.table.reset(new (std::nothrow) TableCache);
  if (!(bench.*scratch) || !bench.table) return nullptr;
  bench.table->forget();
  return &bench;
}

void encode_tasks(nz_encode_job *jobs, const std::vector<Prepared> &prepared, Tasks *tasks,
                  std::vector<Placement> *placements) {
  Workbench *const bench = workbench(&Workbench::encode, make_encode_scratch);
  size_t j;
  uint64_t chunk;
  while (bench && tasks->take(&j, &chunk)) {
    nz_encode_job &job = jobs[j];
    const Layout &layout = *prepared[j].layout;
    const uint64_t from = chunk << job.chunk_log2;
    const size_t units = static_cast<size_t>(std::min(job.units - from, uint64_t{1} << job.chunk_log2));
    const uint64_t width = static_cast<uint64_t>(layout.width);
    const uint8_t *src = job.src + from * width, *bytes;
    bench->table->load(prepared[j].blob, job.first_chunk + chunk);
    const size_t size = encode_chunk(layout, *bench->table, src, units, bench->encode.get(), &bytes);
    job.index[2 * chunk] = static_cast<uint32_t>(size);
    job.index[2 * chunk + 1] = static_cast<uint32_t>(kernels().checksum64(src, units * width));
    place_chunk(&job, &(*placements)[j], chunk, bytes, size);
  }
}

// Offsets of a decode job's chunks; false if the lengths do not add up.
bool chunk_offsets(const nz_decode_job &job, std::vector<uint64_t> *offsets) {
  const uint64_t chunks = Tasks::chunk_count(job);
  offsets->resize(chunks + 1);
  uint64_t at = 0;
  for (uint64_t c = 0; c < chunks; c++) {
    (*offsets)[c] = at;
    at += job.index[2 * c];
  }
  offsets->back() = at;
  return at == job.size;
}

// Records a failure; the lowest chunk wins.
void fail(std::atomic<uint64_t> *bad, uint64_t chunk) {
  uint64_t seen = bad->load();
  while (chunk < seen && !bad->compare_exchange_weak(seen, chunk)) {
  }
}

// How many of the chunks, from the first, have its length and its table.
int run_of_alike(const TableBlob &blob, uint64_t number, const DecodeChunk *chunks, int count) {
  int n = 1;
  while (n < count && chunks[n].units == chunks[0].units &&
         (blob.kind == TableKind::kNone ||
          blob.of_chunk(number + static_cast<uint64_t>(n)).table == blob.of_chunk(number).table))
    n++;
  return n;
}

void decode_task(nz_decode_job *job, const Prepared &prepared, const std::vector<uint64_t> &offsets,
                 uint64_t first, int count, Workbench *bench, std::atomic<uint64_t> *bad) {
  const Layout &layout = *prepared.layout;
  const uint64_t width = static_cast<uint64_t>(layout.width);
  DecodeChunk chunks[kMaxInterleave];
  for (int k = 0; k < count; k++) {
    const uint64_t c = first + static_cast<uint64_t>(k), from = c << job->chunk_log2;
    const size_t units = static_cast<size_t>(std::min(job->units - from, uint64_t{1} << job->chunk_log2));
    chunks[k] = {job->src + offsets[c],
                 static_cast<size_t>(offsets[c + 1] - offsets[c]),
                 static_cast<size_t>(job->size - offsets[c + 1]),
                 units,
                 job->dst + from * width,
                 NZ_OK};
  }
  for (int k = 0; k < count;) {
    const uint64_t number = job->first_chunk + first + static_cast<uint64_t>(k);
    const int alike = run_of_alike(prepared.blob, number, chunks + k, count - k);
    const int together = alike >= 4 ? 4 : alike >= 2 ? 2 : 1;
    bench->table->load(prepared.blob, number);
    decode_chunks(layout, *bench->table, chunks + k, together, bench->decode.get());
    k += together;
  }
  for (int k = 0; k < count; k++) {
    const uint64_t c = first + static_cast<uint64_t>(k);
    bool good = chunks[k].status == NZ_OK;
    if (good && job->verify)
      good = static_cast<uint32_t>(kernels().checksum64(chunks[k].dst, chunks[k].units * width)) ==
             job->index[2 * c + 1];
    if (!good) fail(bad, c);
  }
}

void encode_jobs(nz_encode_job *jobs, size_t count, int32_t threads) {
  const std::vector<Prepared> prepared = prepare_all(jobs, count, NZ_ARGUMENT);
  Tasks tasks(jobs, count, 1);
  std::vector<Placement> placements(count);
  run_threads(threads, tasks.total(), [&] { encode_tasks(jobs, prepared, &tasks, &placements); });
  for (size_t j = 0; j < count; j++) {
    if (jobs[j].status != NZ_OK) continue;
    jobs[j].written = placements[j].end;
    if (placements[j].full) jobs[j].status = NZ_ARGUMENT;
    if (placements[j].placed != Tasks::chunk_count(jobs[j])) jobs[j].status = NZ_MEMORY;
  }
}

void decode_jobs(nz_decode_job *jobs, size_t count, int32_t threads) {
  const std::vector<Prepared> prepared = prepare_all(jobs, count, NZ_CORRUPT);
  std::vector<std::vector<uint64_t>> offsets(count);
  for (size_t j = 0; j < count; j++) {
    jobs[j].bad_chunk = 0;
    if (jobs[j].status == NZ_OK && !chunk_offsets(jobs[j], &offsets[j])) jobs[j].status = NZ_TRUNCATED;
  }
  const int group = kernels().interleave;
  Tasks tasks(jobs, count, static_cast<uint64_t>(group));
  std::vector<std::atomic<uint64_t>> bad(count);
  for (auto &b : bad) b = UINT64_MAX;
  std::atomic<uint64_t> done{0};
  run_threads(threads, tasks.total(), [&] {
    Workbench *const bench = workbench(&Workbench::decode, make_decode_scratch);
    size_t j;
    uint64_t first;
    while (bench && tasks.take(&j, &first)) {
      const uint64_t left = Tasks::chunk_count(jobs[j]) - first;
      const int n = static_cast<int>(std::min<uint64_t>(left, static_cast<uint64_t>(group)));
      decode_task(&jobs[j], prepared[j], offsets[j], first, n, bench, &bad[j]);
      done++;
    }
  });
  for (size_t j = 0; j < count; j++) {
    if (jobs[j].status != NZ_OK) continue;
    if (done != tasks.total()) jobs[j].status = NZ_MEMORY;
    if (bad[j] == UINT64_MAX) continue;
    jobs[j].status = NZ_CORRUPT;
    jobs[j].bad_chunk = bad[j];
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
