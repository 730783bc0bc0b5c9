// Memory that ends, or begins, where no other memory is: one byte too far is a crash, in every build.
#ifndef NEUZIP_TESTS_GUARDED_H
#define NEUZIP_TESTS_GUARDED_H

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace nz_test {

class Guarded {
 public:
  enum Edge { kEnd, kBegin };  // where the inaccessible page adjoins

  Guarded(size_t size, Edge edge = kEnd, uint8_t fill = 0xa5) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = (size + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    base_ = static_cast<uint8_t *>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || (inner && mprotect(base_ + page, inner, PROT_READ | PROT_WRITE))) {
      std::perror("guarded memory");
      std::exit(2);
    }
    data = edge == kEnd ? base_ + page + inner - size : base_ + page;
    this->size = size;
    if (size) std::memset(data, fill, size);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded &) = delete;
  Guarded &operator=(const Guarded &) = delete;

  uint8_t *end() const { return data + size; }

  uint8_t *data;
  size_t size;

 private:
  uint8_t *base_;
  size_t mapped_;
};

}  // namespace nz_test

#endif
