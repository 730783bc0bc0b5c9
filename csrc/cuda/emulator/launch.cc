// The kernels by name, and their launch.
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "block.h"

namespace nz::emulator {
namespace {

struct Kernel {
  std::string name;
  void (*function)();
  void (*invoke)(void (*)(), const void *const *);
  std::vector<uint64_t> sizes;
};

std::vector<Kernel> &kernels() {
  static std::vector<Kernel> all;
  return all;
}

const Kernel *find(const char *name) {
  for (const Kernel &kernel : kernels())
    if (kernel.name == name) return &kernel;
  return nullptr;
}

// What CUDA refuses of every GPU since sm_75 (its programming guide, Compute Capabilities).
constexpr uint64_t kThreads = 1024, kSharedBytes = 227 << 10;
constexpr uint64_t kGrid[3] = {(1ull << 31) - 1, 65535, 65535}, kBlock[3] = {1024, 1024, 64};

std::string problem(const NzEmulatorLaunch &launch) {
  uint64_t threads = 1;
  for (int i = 0; i < 3; i++) {
    if (!launch.grid[i] || launch.grid[i] > kGrid[i]) return "no such grid";
    if (!launch.block[i] || launch.block[i] > kBlock[i]) return "no such block";
    threads *= launch.block[i];
  }
  if (threads > kThreads) return "more than 1024 threads a block";
  return launch.shared > kSharedBytes ? "more dynamic shared memory than any GPU has" : "";
}

std::string problem(const Kernel &kernel, const uint64_t *sizes, uint32_t count) {
  if (count != kernel.sizes.size())
    return std::to_string(count) + " arguments, not " + std::to_string(kernel.sizes.size());
  for (uint32_t i = 0; i < count; i++)
    if (sizes[i] != kernel.sizes[i])
      return "argument " + std::to_string(i) + " has " + std::to_string(sizes[i]) + " bytes, not " +
             std::to_string(kernel.sizes[i]);
  return "";
}

// Block `number` of a grid, in the order of the launch: any order must do.
uint3 index_of(uint64_t number, const NzEmulatorLaunch &launch, uint64_t blocks) {
  if (launch.seed) {
    number = (number + launch.seed) % blocks;
    if (launch.seed & 1) number = blocks - 1 - number;
  }
  const uint32_t *const grid = launch.grid;
  const uint64_t row = number / grid[0];
  return {static_cast<uint32_t>(number % grid[0]), static_cast<uint32_t>(row % grid[1]),
          static_cast<uint32_t>(row / grid[1])};
}

Fault run(const Work &work) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const NzEmulatorLaunch &launch = work.launch;
  const uint64_t blocks = static_cast<uint64_t>(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  Block block(work);
  for (uint64_t number = 0; number < blocks; number++) {
    Fault fault = block.run(index_of(number, launch, blocks));
    if (fault.kind != NZ_EMULATOR_OK) return fault;
  }
  return {};
}

thread_local std::string error;

}  // namespace

void add_kernel(const char *name, void (*function)(), void (*invoke)(void (*)(), const void *const *),
                const uint64_t *sizes, uint32_t count) {
  kernels().push_back({name, function, invoke, {sizes, sizes + count}});
}

}  // namespace nz::emulator

int nz_emulator_launch(const char *name, const NzEmulatorLaunch *launch, const void *const *arguments,
                       const uint64_t *sizes, uint32_t count) {
  using namespace nz::emulator;
  const Kernel *const kernel = find(name);
  std::string wrong = !kernel ? "no such kernel" : problem(*kernel, sizes, count);
  if (wrong.empty()) wrong = problem(*launch);
  Fault fault = {NZ_EMULATOR_MISUSE, std::string(name) + ": " + wrong};
  if (wrong.empty()) {
    try {
      fault = run({name, kernel->invoke, kernel->function, arguments, *launch});
    } catch (const std::bad_alloc &) {
      fault = {NZ_EMULATOR_MISUSE, std::string(name) + ": no memory for its threads"};
    }
  }
  error = fault.message;
  return fault.kind;
}

const char *nz_emulator_error(void) { return nz::emulator::error.c_str(); }

const char *nz_emulator_kernel(uint32_t index) {
  return index < nz::emulator::kernels().size() ? nz::emulator::kernels()[index].name.c_str() : nullptr;
}
