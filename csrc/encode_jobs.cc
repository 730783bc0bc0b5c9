// Encoding jobs (neuzip.h): chunks of any tensors, by several threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "chunk.h"
#include "jobs.h"
#include "kernels.h"
#include "thread_pool.h"

namespace nz {
namespace {

// A job's chunks: each lies behind its predecessor, so they are placed in order, while several are encoded
// side by side.
struct Line {
  uint64_t chunks = 0;
  std::atomic<uint64_t> taken{0};   // may pass `chunks`
  std::atomic<uint64_t> placed{0};  // chunks whose place is known
  std::atomic<uint64_t> slots{0};   // that have joined
  uint64_t end = 0;                 // of the chunks placed so far; owned by whoever's turn it is
  std::atomic<bool> full{false};

  bool take(uint64_t *chunk) {
    if (taken.load(std::memory_order_relaxed) >= chunks) return false;
    *chunk = taken.fetch_add(1, std::memory_order_relaxed);
    return *chunk < chunks;
  }
};

constexpr size_t kNoJob = SIZE_MAX;

// Hands out chunks to slots, in each of which a thread encodes one at a time. A slot stays with its job:
// alone there, it knows where the next chunk will lie before it is encoded, and nothing is copied. Where no
// job is left to begin, slots join those that others have begun.
class Queue {
 public:
  Queue(const nz_encode_job *jobs, size_t count) : lines_(count) {
    for (size_t j = 0; j < count; j++) {
      if (jobs[j].status == NZ_OK) lines_[j].chunks = chunk_count(jobs[j]);
      total_ += lines_[j].chunks;
    }
  }

  uint64_t total() const { return total_; }
  Line &line(size_t job) { return lines_[job]; }

  // The next chunk of a slot that is at *job, or at kNoJob. False when there is none.
  bool take(size_t *job, uint64_t *chunk) {
    if (*job != kNoJob && lines_[*job].take(chunk)) return true;
    for (size_t j; (j = begun_.fetch_add(1, std::memory_order_relaxed)) < lines_.size();)
      if (join(j, job, chunk)) return true;
    for (size_t j = lines_.size(); j-- > 0;)
      if (join(j, job, chunk)) return true;
    return false;
  }

  // What the `k`th of a thread's `mine` slots at a job will likely be given next, if all slots take turns.
  // False if that cannot be said.
  bool peek(uint64_t mine, uint64_t k, size_t *job, uint64_t *chunk) const {
    const Line &line = lines_[*job];
    *chunk =
        line.taken.load(std::memory_order_relaxed) + line.slots.load(std::memory_order_relaxed) - mine + k;
    if (*chunk < line.chunks) return true;
    *job = begun_.load(std::memory_order_relaxed) + k;
    *chunk = 0;
    return *job < lines_.size() && lines_[*job].chunks;
  }

 private:
  bool join(size_t j, size_t *job, uint64_t *chunk) {
    if (!lines_[j].take(chunk)) return false;
    lines_[j].slots.fetch_add(1, std::memory_order_relaxed);
    *job = j;
    return true;
  }

  std::vector<Line> lines_;  // one for each job
  std::atomic<size_t> begun_{0};
  uint64_t total_ = 0;
};

// What a thread works with. Kept for its next call: fresh memory costs a small tensor more than coding it.
struct Workbench {
  EncodeScratchPtr scratch;
  std::unique_ptr<TableCache[]> tables;  // one for each slot

  // False if memory is short.
  bool ready() {
    if (!scratch) scratch = make_encode_scratch();
    if (!tables) tables.reset(new (std::nothrow) TableCache[kEncodeInterleave]);
    // They are recognised by their addresses, and others may lie there now.
    for (int k = 0; tables && k < kEncodeInterleave; k++) tables[k].forget();
    return scratch && tables;
  }
};

// One thread's part in a call.
class Encoder {
 public:
  Encoder(nz_encode_job *jobs, const std::vector<Prepared> &prepared, Queue *queue, Workbench *bench)
      : jobs_(jobs), prepared_(prepared), queue_(queue), bench_(bench) {}

  void run() {
    while (fill()) {
      for (int k = 0; k < count_; k++) chunks_[k].next = address_of_next(k);
      encode_chunks(chunks_, count_, bench_->scratch.get());
      for (int k = 0; k < count_; k++) {
        describe(k);
        place(k);
      }
    }
  }

 private:
  // Takes a chunk for each slot; false when there is none left.
  bool fill() {
    for (count_ = 0; count_ < kernels().encode_interleave; count_++) {
      const int k = count_;
      if (!queue_->take(&at_[k].job, &at_[k].chunk)) break;
      open(k);
    }
    return count_ > 0;
  }

  void open(int k) {
    const nz_encode_job &job = jobs_[at_[k].job];
    const Prepared &its = prepared_[at_[k].job];
    const uint64_t from = at_[k].chunk << job.chunk_log2;
    EncodeChunk &chunk = chunks_[k];
    chunk.layout = its.layout;
    chunk.table = table_of(its.blob, job.first_chunk + at_[k].chunk, k);
    chunk.src = unit(job, its, from);
    chunk.units = static_cast<size_t>(std::min(job.units - from, uint64_t{1} << job.chunk_log2));
    chunk.dst = known_place(k, chunk_bound(*its.layout, chunk.units));
  }

  static const uint8_t *unit(const nz_encode_job &job, const Prepared &its, uint64_t number) {
    return job.src + number * static_cast<uint64_t>(its.layout->width);
  }

  // The first slot's table, if that is it, or the slot's own, loaded.
  const TableCache *table_of(const TableBlob &blob, uint64_t chunk, int k) {
    TableCache *const tables = bench_->tables.get();
    if (tables[0].holds(blob, chunk)) return &tables[0];
    tables[k].load(blob, chunk);
    return &tables[k];
  }

  // Where a slot's chunk goes if that is known already and has room for any chunk, else null: it will have to
  // be copied.
  uint8_t *known_place(int k, size_t bound) {
    const nz_encode_job &job = jobs_[at_[k].job];
    const Line &line = queue_->line(at_[k].job);
    if (line.placed.load(std::memory_order_acquire) != at_[k].chunk) return nullptr;
    return job.capacity - line.end < bound ? nullptr : job.dst + line.end;
  }

  // Where the original bytes begin that a slot will likely encode next; null if that is not known.
  const uint8_t *address_of_next(int k) const {
    size_t job = at_[k].job;
    uint64_t mine = 0, before = 0, chunk;
    for (int i = 0; i < count_; i++) mine += at_[i].job == job, before += i < k && at_[i].job == job;
    if (!queue_->peek(mine, before, &job, &chunk)) return nullptr;
    return unit(jobs_[job], prepared_[job], chunk << jobs_[job].chunk_log2);
  }

  // Length and checksum of an encoded chunk.
  void describe(int k) {
    const EncodeChunk &chunk = chunks_[k];
    uint32_t *const entry = jobs_[at_[k].job].index + 2 * at_[k].chunk;
    entry[0] = static_cast<uint32_t>(chunk.size);
    entry[1] = static_cast<uint32_t>(
        kernels().checksum64(chunk.src, chunk.units * static_cast<size_t>(chunk.layout->width)));
  }

  // Chunks are placed in the order in which a thread took them: whoever waits, waits for one that was taken
  // earlier than all it still holds itself, so nobody waits for each other, and whoever holds that one is at
  // work.
  void place(int k) {
    const nz_encode_job &job = jobs_[at_[k].job];
    const EncodeChunk &chunk = chunks_[k];
    Line &line = queue_->line(at_[k].job);
    while (line.placed.load(std::memory_order_acquire) != at_[k].chunk) std::this_thread::yield();
    const uint64_t at = line.end;
    const bool fits = chunk.size <= job.capacity - at;
    line.end = fits ? at + chunk.size : at;
    if (!fits) line.full.store(true, std::memory_order_relaxed);
    line.placed.store(at_[k].chunk + 1, std::memory_order_release);
    if (fits && chunk.bytes != job.dst + at) std::memcpy(job.dst + at, chunk.bytes, chunk.size);
  }

  struct Place {
    size_t job = kNoJob;
    uint64_t chunk = 0;
  };

  nz_encode_job *jobs_;
  const std::vector<Prepared> &prepared_;
  Queue *queue_;
  Workbench *bench_;
  int count_ = 0;  // slots that have a chunk
  Place at_[kEncodeInterleave];
  EncodeChunk chunks_[kEncodeInterleave];
};

void encode_jobs(nz_encode_job *jobs, size_t count, int32_t threads) {
  const std::vector<Prepared> prepared = prepare_all(jobs, count, NZ_ARGUMENT);
  Queue queue(jobs, count);
  run_threads(threads, queue.total(), [&] {
    static thread_local Workbench bench;
    if (bench.ready()) Encoder(jobs, prepared, &queue, &bench).run();
  });
  for (size_t j = 0; j < count; j++) {
    if (jobs[j].status != NZ_OK) continue;
    const Line &line = queue.line(j);
    jobs[j].written = line.end;
    if (line.full) jobs[j].status = NZ_ARGUMENT;
    if (line.placed != line.chunks) jobs[j].status = NZ_MEMORY;
  }
}

}  // namespace
}  // namespace nz

extern "C" {

uint64_t nz_chunk_bound(int32_t layout, int32_t chunk_log2) {
  const nz::Layout *found = nz::find_layout(layout);
  if (!found || chunk_log2 < 10 || chunk_log2 > 16) return 0;
  return nz::chunk_bound(*found, size_t{1} << chunk_log2);
}

int32_t nz_encode(nz_encode_job *jobs, size_t count, int32_t threads) {
  return nz::run_jobs(jobs, count, [&] { nz::encode_jobs(jobs, count, threads); });
}

}  // extern "C"
