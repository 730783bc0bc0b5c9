// Lets the first, second, … allocation of a call fail, and all later ones. The call must answer NZ_MEMORY, or
// do without: then its result is right. It must not throw.
#include <atomic>
#include <new>

#include "tensor.h"

namespace {

std::atomic<long> allocations_left{-1};  // −1: any number

void *allocate(size_t size, size_t alignment) {
  if (allocations_left == 0) return nullptr;
  if (allocations_left > 0) allocations_left--;
  if (alignment == 0) return std::malloc(size ? size : 1);
  void *memory = nullptr;
  return posix_memalign(&memory, alignment, size) ? nullptr : memory;
}

void *allocate_or_throw(size_t size, size_t alignment) {
  if (void *memory = allocate(size, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void *operator new(size_t size) { return allocate_or_throw(size, 0); }
void *operator new(size_t size, const std::nothrow_t &) noexcept { return allocate(size, 0); }
void *operator new(size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<size_t>(alignment));
}
void *operator new(size_t size, std::align_val_t alignment, const std::nothrow_t &) noexcept {
  return allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, size_t) noexcept { std::free(memory); }
void operator delete(void *memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void *memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

// Calls call() with 0, 1, … allocations until none fails any more. call() is true if it answered NZ_OK.
template <typename Call>
void starve(const Call &call) {
  for (long allowed = 0;; allowed++) {
    allocations_left = allowed;
    const bool done = call();
    const bool enough = allocations_left > 0;
    allocations_left = -1;
    REQUIRE(allowed < 1000);
    if (!enough) continue;
    REQUIRE(done);
    return;
  }
}

void starve_plan(const Encoded &tensor) {
  Bytes table(NZ_TABLE_CAPACITY);
  starve([&] {
    const int32_t size = nz_plan(tensor.layout, tensor.level, tensor.chunk_log2, tensor.original.data(),
                                 tensor.units, table.data());
    REQUIRE(size == NZ_MEMORY || size == static_cast<int32_t>(tensor.table.size()));
    return size >= 0;
  });
}

constexpr int kJobs = 3;

void starve_encode(const Encoded &tensor, int32_t threads) {
  const Exact src(tensor.original), table(tensor.table);
  std::vector<Exact> buffers;
  std::vector<std::vector<uint32_t>> indexes(kJobs, std::vector<uint32_t>(tensor.index.size()));
  std::vector<nz_encode_job> jobs;
  for (int j = 0; j < kJobs; j++) {
    buffers.emplace_back(tensor.chunks.size());
    jobs.push_back(encode_job(tensor, src, table, &buffers.back(), &indexes[static_cast<size_t>(j)]));
  }
  starve([&] {
    const int32_t answer = nz_encode(jobs.data(), jobs.size(), threads);
    bool all = true;
    for (size_t j = 0; j < jobs.size(); j++) {
      REQUIRE(jobs[j].status == NZ_OK || jobs[j].status == NZ_MEMORY);
      all = all && jobs[j].status == NZ_OK;
      REQUIRE(jobs[j].status != NZ_OK || (buffers[j].equals(tensor.chunks) && indexes[j] == tensor.index));
    }
    REQUIRE((answer == NZ_OK) == all);
    return all;
  });
}

void starve_decode(const Encoded &tensor, int32_t threads) {
  const Exact src(tensor.chunks), table(tensor.table);
  std::vector<Exact> buffers;
  std::vector<nz_decode_job> jobs;
  for (int j = 0; j < kJobs; j++) {
    buffers.emplace_back(tensor.original.size());
    jobs.push_back(decode_job(tensor, src, table, &buffers.back()));
  }
  starve([&] {
    const int32_t answer = nz_decode(jobs.data(), jobs.size(), threads);
    bool all = true;
    for (size_t j = 0; j < jobs.size(); j++) {
      REQUIRE(jobs[j].status == NZ_OK || jobs[j].status == NZ_MEMORY);
      all = all && jobs[j].status == NZ_OK;
      REQUIRE(jobs[j].status != NZ_OK || buffers[j].equals(tensor.original));
    }
    REQUIRE((answer == NZ_OK) == all);
    return all;
  });
}

// So many units that the offsets of their chunks cannot be had at all.
void starve_by_size(const Encoded &tensor) {
  const Exact src(tensor.chunks), table(tensor.table);
  Exact dst(0);
  nz_decode_job job = decode_job(tensor, src, table, &dst);
  job.units = UINT64_MAX;
  REQUIRE(nz_decode(&job, 1, 1) == NZ_MEMORY && job.status == NZ_MEMORY);
}

}  // namespace

int main() {
  for (int32_t layout = 1; layout <= kLayouts; layout++) {
    const Encoded tensor = encode(layout, NZ_LEVEL_MAX, 10, make_tensor(layout, Kind::kWeights, 20000, 1));
    REQUIRE(!tensor.table.empty());
    starve_plan(tensor);
    starve_by_size(tensor);
    for (int32_t threads : {1, 3}) {
      starve_encode(tensor, threads);
      starve_decode(tensor, threads);
    }
  }
  return 0;
}
