// The threads of a block: whose turn it is, and where they wait for each other.
#ifndef NEUZIP_CUDA_EMULATOR_BLOCK_H
#define NEUZIP_CUDA_EMULATOR_BLOCK_H

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "chance.h"
#include "emulator.h"
#include "fiber.h"
#include "shared.h"
#include "thread.h"

namespace nz::emulator {

constexpr uint32_t kLanes = 32;

enum class State : uint8_t { kReady, kCollective, kBarrier, kLeft };

struct Thread : Place {
  explicit Thread(void (*body)()) : fiber(body) {}

  Fiber fiber;
  uint32_t number = 0;  // in the block
  State state = State::kReady;
  // Where it waits, and with what.
  Collective collective = Collective::kSync;
  uint32_t mask = 0;
  uint32_t source = 0;
  uint64_t value = 0;
  uint64_t result = 0;
  Site site = {"", 0};
  Copies copies;

  uint32_t lane() const { return number % kLanes; }
};

// What orders memory where a group of threads meets again and again: what they released before a meeting,
// they acquire after it. One who is already at the next must not release to the same place.
struct Order {
  uint32_t meetings = 0;
  char places[2] = {};
};

// Sets of lanes.
struct Warp {
  uint32_t present = 0, ready = 0, collective = 0, barrier = 0, left = 0;
  bool together = false;             // whether all lanes that wait in a collective do so in one
  std::map<uint32_t, Order> orders;  // of __syncwarp, for each mask
};

// What to run, and how.
struct Work {
  std::string kernel;
  void (*invoke)(void (*)(), const void *const *);
  void (*function)();
  const void *const *arguments;
  NzEmulatorLaunch launch;
};

struct Fault {
  int kind = NZ_EMULATOR_OK;
  std::string message;
};

class Block {
 public:
  explicit Block(const Work &work);
  // Runs the threads of one block to their end, or to a fault.
  Fault run(const uint3 &index);

  // From a running thread. meet: the result of a collective.
  uint64_t meet(Collective collective, uint32_t mask, uint64_t value, uint32_t source, Site site);
  void barrier(Site site);
  void turn();  // the end of a thread's turn, in the middle of its work
  [[noreturn]] void fail(int kind, const std::string &message);
  void *dynamic_shared() { return shared_.get(); }
  bool is_early() { return work_.launch.seed && chance_.next() % 2; }

 private:
  struct Free {
    void operator()(void *p) const { free(p); }
  };

  static void body();
  void leave();
  void prepare(const uint3 &index);
  void check_meeting(const Thread &self, const Warp &warp);
  bool all_there(const Thread &self, const Warp &warp) const;
  void complete(Warp *warp, uint32_t mask);
  uint64_t result(const Thread &thread, uint32_t mask) const;
  void open_barrier();
  void give_way();
  Thread *next();
  uint32_t pick(uint32_t set);
  void start_turn();
  void end_turn();
  void hand_over(Thread *to);
  const Thread &peer(const Thread &self, uint32_t lane) const {
    return *threads_[self.number / kLanes * kLanes + lane];
  }

  const Work &work_;
  Chance chance_, chance_of_poison_;
  Fiber host_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  uint32_t ready_warps_ = 0;
  uint32_t at_barrier_ = 0, left_ = 0;
  Order barrier_order_;
  char begin_ = 0, end_ = 0;
  std::unique_ptr<void, Free> shared_;
  int64_t turn_length_ = 0;
  uint64_t steps_left_;
  Fault fault_;
};

}  // namespace nz::emulator

#endif
