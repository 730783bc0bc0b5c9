// Several jobs by four threads, and several such calls at once: for ThreadSanitizer, and the bytes must be
// those that one thread makes.
#include <thread>

#include "tensor.h"

namespace {

constexpr int32_t kThreads = 4;

struct Work {
  std::vector<Encoded> tensors;

  Work() {
    for (int32_t layout = 1; layout <= kLayouts; layout++)
      for (size_t units : {0, 1, 1000, 9000, 40000}) {
        const Kind kind = static_cast<Kind>((layout + units / 1000) % static_cast<int>(Kind::kCount));
        tensors.push_back(encode(layout, NZ_LEVEL_DEFAULT, 10, make_tensor(layout, kind, units, units)));
      }
  }

  void encode_all() const {
    std::vector<Exact> buffers;
    buffers.reserve(3 * tensors.size());
    std::vector<std::vector<uint32_t>> indexes;
    indexes.reserve(tensors.size());
    std::vector<nz_encode_job> jobs;
    for (const Encoded &tensor : tensors) {
      Exact &src = buffers.emplace_back(tensor.original), &table = buffers.emplace_back(tensor.table);
      Exact &dst = buffers.emplace_back(tensor.chunks.size());
      indexes.emplace_back(tensor.index.size());
      jobs.push_back(encode_job(tensor, src, table, &dst, &indexes.back()));
    }
    REQUIRE(nz_encode(jobs.data(), jobs.size(), kThreads) == NZ_OK);
    for (size_t j = 0; j < jobs.size(); j++) {
      REQUIRE(jobs[j].written == tensors[j].chunks.size());
      REQUIRE(buffers[3 * j + 2].equals(tensors[j].chunks) && indexes[j] == tensors[j].index);
    }
  }

  // With `damage`, all chunks but the first of every job are ruined; the lowest of them must be named.
  void decode_all(bool damage) const {
    std::vector<Exact> buffers;
    buffers.reserve(3 * tensors.size());
    std::vector<nz_decode_job> jobs;
    for (const Encoded &tensor : tensors) {
      Bytes chunks = tensor.chunks;
      const size_t first = tensor.index.empty() ? 0 : tensor.index[0];
      if (damage && tensor.index.size() > 2)
        for (size_t at = first; at < chunks.size(); at++) chunks[at] = 0xff;  // no mode is 255
      Exact &src = buffers.emplace_back(chunks), &table = buffers.emplace_back(tensor.table);
      jobs.push_back(decode_job(tensor, src, table, &buffers.emplace_back(tensor.original.size())));
    }
    nz_decode(jobs.data(), jobs.size(), kThreads);
    for (size_t j = 0; j < jobs.size(); j++) {
      if (damage && tensors[j].index.size() > 2)
        REQUIRE(jobs[j].status == NZ_CORRUPT && jobs[j].bad_chunk == 1);
      else
        REQUIRE(jobs[j].status == NZ_OK && buffers[3 * j + 2].equals(tensors[j].original));
    }
  }
  // Calls so short that one's threads are hardly gone when the next ones are called for.
  void decode_one_by_one() const {
    for (const Encoded &tensor : tensors) {
      const Exact src(tensor.chunks), table(tensor.table);
      Exact dst(tensor.original.size());
      nz_decode_job job = decode_job(tensor, src, table, &dst);
      REQUIRE(nz_decode(&job, 1, kThreads) == NZ_OK && dst.equals(tensor.original));
    }
  }
};

}  // namespace

int main() {
  for (int32_t isa = 0; isa < NZ_ISA_COUNT; isa++) {
    if (nz_isa_select(isa) != NZ_OK) continue;
    const Work work;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 2; caller++)
      callers.emplace_back([&] {
        work.encode_all();
        work.decode_all(false);
        work.decode_all(true);
        work.decode_one_by_one();
      });
    for (std::thread &caller : callers) caller.join();
    std::printf("%s\n", nz_isa_name(isa));
  }
  return 0;
}
