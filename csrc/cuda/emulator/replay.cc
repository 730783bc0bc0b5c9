// cuda_replay SCRIPT RESULTS SEED...: runs the launches of a script, once for each seed, in fresh memory, and
// writes what they leave. In a process of its own, so that a kernel may crash, and a sanitizer end it.
//
// A script is u64s and bytes padded to a multiple of 8, in the machine's order:
//   buffers, then for each: size, misalignment, whether its bytes at the end are a result, bytes;
//   pointers, then for each: buffer, offset in it, buffer pointed to, offset in that;
//   launches, then for each: length of the name, name, grid (3), block (3), dynamic shared memory, arguments,
//     and for each of these: bytes, value (of 4 or 8 bytes) or, if bytes is 0, a buffer whose address it is.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"

extern "C" __attribute__((weak)) void __asan_poison_memory_region(const volatile void *, size_t);

namespace {

constexpr uint64_t kAlignment = 64;  // of every buffer, but for its misalignment

struct Buffer {
  uint64_t size, misalignment, kept;
  std::string bytes;
};

struct Pointer {
  uint64_t buffer, offset, to, to_offset;
};

struct Argument {
  uint64_t bytes, value;
};

struct Launch {
  std::string name;
  NzEmulatorLaunch how;
  std::vector<Argument> arguments;
};

struct Script {
  std::vector<Buffer> buffers;
  std::vector<Pointer> pointers;
  std::vector<Launch> launches;
};

class Reader {
 public:
  explicit Reader(const char *path) : file_(fopen(path, "rb")) {
    if (!file_) stop();
  }
  ~Reader() { fclose(file_); }
  Reader(const Reader &) = delete;
  Reader &operator=(const Reader &) = delete;

  uint64_t number() {
    uint64_t value;
    if (fread(&value, sizeof value, 1, file_) != 1) stop();
    return value;
  }
  std::string bytes(uint64_t size) {
    std::string bytes((size + 7) / 8 * 8, '\0');
    if (fread(bytes.data(), 1, bytes.size(), file_) != bytes.size()) stop();
    bytes.resize(size);
    return bytes;
  }

 private:
  [[noreturn]] static void stop() {
    fprintf(stderr, "the script cannot be read\n");
    exit(3);
  }
  FILE *file_;
};

Launch read_launch(Reader *in) {
  Launch launch = {};
  launch.name = in->bytes(in->number());
  for (uint32_t &n : launch.how.grid) n = static_cast<uint32_t>(in->number());
  for (uint32_t &n : launch.how.block) n = static_cast<uint32_t>(in->number());
  launch.how.shared = in->number();
  launch.arguments.resize(in->number());
  for (Argument &argument : launch.arguments) {
    argument.bytes = in->number();
    argument.value = in->number();
  }
  return launch;
}

Script read(const char *path) {
  Reader in(path);
  Script script;
  script.buffers.resize(in.number());
  for (Buffer &buffer : script.buffers) {
    buffer.size = in.number();
    buffer.misalignment = in.number();
    buffer.kept = in.number();
    buffer.bytes = in.bytes(buffer.size);
  }
  script.pointers.resize(in.number());
  for (Pointer &pointer : script.pointers) pointer = {in.number(), in.number(), in.number(), in.number()};
  const uint64_t launches = in.number();
  for (uint64_t i = 0; i < launches; i++) script.launches.push_back(read_launch(&in));
  return script;
}

// A buffer in memory of exactly its size: what is before it, and what follows, is not to be touched.
class Memory {
 public:
  explicit Memory(const Buffer &buffer) : size_(buffer.size) {
    void *block = nullptr;
    if (posix_memalign(&block, kAlignment, buffer.misalignment + size_ + !size_)) abort();
    block_.reset(static_cast<char *>(block));
    start_ = block_.get() + buffer.misalignment;
    if (size_) memcpy(start_, buffer.bytes.data(), size_);
    if (__asan_poison_memory_region) __asan_poison_memory_region(block_.get(), buffer.misalignment / 8 * 8);
  }
  char *at(uint64_t offset) const { return start_ + offset; }
  uint64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char *p) const { free(p); }
  };
  uint64_t size_;
  std::unique_ptr<char, Free> block_;
  char *start_;
};

int run(const Launch &launch, const std::vector<Memory> &memory, uint64_t seed) {
  std::vector<uint64_t> values, sizes;
  for (const Argument &argument : launch.arguments) {
    const bool is_buffer = !argument.bytes;
    values.push_back(is_buffer ? reinterpret_cast<uintptr_t>(memory[argument.value].at(0)) : argument.value);
    sizes.push_back(is_buffer ? sizeof(void *) : argument.bytes);
  }
  std::vector<const void *> addresses;
  for (const uint64_t &value : values) addresses.push_back(&value);
  NzEmulatorLaunch how = launch.how;
  how.seed = how.poison = seed;
  return nz_emulator_launch(launch.name.c_str(), &how, addresses.data(), sizes.data(),
                            static_cast<uint32_t>(values.size()));
}

int run(const Script &script, uint64_t seed, FILE *results) {
  std::vector<Memory> memory;
  for (const Buffer &buffer : script.buffers) memory.emplace_back(buffer);
  for (const Pointer &p : script.pointers) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory[p.to].at(p.to_offset));
    memcpy(memory[p.buffer].at(p.offset), &address, sizeof address);
  }
  for (const Launch &launch : script.launches) {
    const int fault = run(launch, memory, seed);
    if (fault) {
      fprintf(stderr, "fault %d, seed %llu: %s\n", fault, static_cast<unsigned long long>(seed),
              nz_emulator_error());
      return 2;
    }
  }
  for (size_t i = 0; i < memory.size(); i++)
    if (script.buffers[i].kept && fwrite(memory[i].at(0), 1, memory[i].size(), results) != memory[i].size())
      return 3;
  return 0;
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 4) return 3;
  const Script script = read(arguments[1]);
  FILE *const results = fopen(arguments[2], "wb");
  if (!results) return 3;
  int status = 0;
  for (int i = 3; i < count && !status; i++)
    status = run(script, strtoull(arguments[i], nullptr, 10), results);
  return fclose(results) ? 3 : status;
}
