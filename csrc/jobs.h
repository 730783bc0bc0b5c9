// Jobs of the C interface: what encoding and decoding have in common.
#ifndef NEUZIP_JOBS_H
#define NEUZIP_JOBS_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "layout.h"
#include "neuzip.h"
#include "plan.h"

namespace nz {

template <typename Job>
uint64_t chunk_count(const Job &job) {
  const uint64_t size = uint64_t{1} << job.chunk_log2;
  return job.units / size + (job.units % size != 0);
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

}  // namespace nz

#endif
