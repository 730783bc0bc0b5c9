// Decoding jobs (neuzip.h): chunks of any tensors, by several threads.
#include <algorithm>
#include <atomic>
#include <vector>

#include "chunk.h"
#include "jobs.h"
#include "kernels.h"
#include "rans.h"
#include "thread_pool.h"

namespace nz {
namespace {

// Hands out the chunks of jobs in order.
class Tasks {
 public:
  Tasks(const nz_decode_job *jobs, size_t count) {
    first_.reserve(count + 1);
    uint64_t total = 0;
    for (size_t j = 0; j < count; j++) {
      first_.push_back(total);
      if (jobs[j].status == NZ_OK) total += chunk_count(jobs[j]);
    }
    first_.push_back(total);
  }

  uint64_t total() const { return first_.back(); }

  // The next chunk: its job, and its number there. False when there is none.
  bool take(size_t *job, uint64_t *chunk) {
    const uint64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= total()) return false;
    // The last job that begins at or before the task; jobs without tasks share their successor's number.
    *job = static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), task) - first_.begin()) - 1;
    *chunk = task - first_[*job];
    return true;
  }

 private:
  std::vector<uint64_t> first_;  // task number of each job, and the total
  std::atomic<uint64_t> next_{0};
};

// A chunk's length and checksum32.
const uint8_t *entry(const nz_decode_job &job, uint64_t chunk) {
  return reinterpret_cast<const uint8_t *>(job.index) + 8 * chunk;
}

// Offsets of a decode job's chunks; false if the lengths do not add up.
bool chunk_offsets(const nz_decode_job &job, std::vector<uint64_t> *offsets) {
  const uint64_t chunks = chunk_count(job);
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

// Kept for the thread's next call: fresh memory costs a small tensor more than decoding it.
ChunkDecoderPtr &this_threads_decoder() {
  static thread_local ChunkDecoderPtr decoder;
  return decoder;
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
    ChunkDecoder *const decoder = chunk_decoder(&this_threads_decoder());
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

}  // namespace
}  // namespace nz

extern "C" int32_t nz_decode(nz_decode_job *jobs, size_t count, int32_t threads) {
  return nz::run_jobs(jobs, count, [&] { nz::decode_jobs(jobs, count, threads); });
}
