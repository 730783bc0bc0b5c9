#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace nz::emulator {

Place *place;

// Steps of the running thread's turn that are left. Counted down in every basic block of a kernel.
int64_t turn_left = INT64_MAX;

namespace {

constexpr uint64_t kSteps = 1ull << 34;  // some minutes
constexpr uint32_t kLongestTurn = 256;   // steps; a collective ends a turn too

Block *block;

Thread *running() { return static_cast<Thread *>(place); }

const char *name_of(Collective collective) {
  static const char *const kNames[] = {"__syncwarp",        "__ballot_sync",     "__all_sync",
                                       "__any_sync",        "__shfl_sync",       "__match_any_sync",
                                       "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                       "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
  return kNames[static_cast<int>(collective)];
}

std::string text(const Site &site) {
  const char *const slash = strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string text(const uint3 &index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
         ")";
}

std::string text(const Thread &thread) {
  const std::string name = "thread " + std::to_string(thread.number);
  char mask[16];
  snprintf(mask, sizeof mask, "%08x", thread.mask);
  switch (thread.state) {
    case State::kReady:
      return name + " runs";
    case State::kLeft:
      return name + " has left";
    case State::kBarrier:
      return name + " waits in __syncthreads at " + text(thread.site);
    default:
      return name + " waits in " + name_of(thread.collective) + " of lanes " + mask + " at " +
             text(thread.site);
  }
}

bool same(const Site &a, const Site &b) {
  return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file));
}

bool meets(const Thread &a, const Thread &b) {
  return a.collective == b.collective && a.mask == b.mask && same(a.site, b.site);
}

uint32_t lowest(uint32_t set) { return static_cast<uint32_t>(__builtin_ctz(set)); }

}  // namespace

Block::Block(const Work &work)
    : work_(work),
      chance_(work.launch.seed),
      chance_of_poison_(work.launch.poison),
      steps_left_(work.launch.steps ? work.launch.steps : kSteps) {
  const uint32_t *const size = work.launch.block;
  const uint32_t count = size[0] * size[1] * size[2];
  for (uint32_t i = 0; i < count; i++) threads_.push_back(std::make_unique<Thread>(&Block::body));
  warps_.resize((count + kLanes - 1) / kLanes);
  if (work.launch.shared) {
    // At least that much and no more, so that AddressSanitizer knows the end.
    void *shared = nullptr;
    if (posix_memalign(&shared, 16, work.launch.shared)) throw std::bad_alloc();
    shared_.reset(shared);
  }
}

void Block::prepare(const uint3 &index) {
  const NzEmulatorLaunch &launch = work_.launch;
  for (uint32_t i = 0; i < threads_.size(); i++) {
    Thread &thread = *threads_[i];
    thread.thread = {i % launch.block[0], i / launch.block[0] % launch.block[1],
                     i / launch.block[0] / launch.block[1]};
    thread.block = index;
    thread.block_size = {launch.block[0], launch.block[1], launch.block[2]};
    thread.grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
    thread.number = i;
    thread.state = State::kReady;
    thread.copies = Copies();
  }
  ready_warps_ = 0;
  for (uint32_t w = 0; w < warps_.size(); w++) {
    const uint32_t lanes = std::min<uint32_t>(kLanes, static_cast<uint32_t>(threads_.size()) - w * kLanes);
    warps_[w] = Warp();
    warps_[w].present = warps_[w].ready = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    ready_warps_ |= 1u << w;
  }
  at_barrier_ = left_ = 0;
}

Fault Block::run(const uint3 &index) {
  prepare(index);
  poison_shared(&chance_of_poison_);
  poison(shared_.get(), work_.launch.shared, &chance_of_poison_);
  block = this;
  release(&begin_);
  Thread *const first = next();
  place = first;
  start_turn();
  Fiber::hand_over(&host_, &first->fiber);
  acquire(&end_);
  place = nullptr;
  turn_left = INT64_MAX;
  return fault_;
}

// What every fiber does: a thread of one block after the other.
void Block::body() {
  while (true) {
    acquire(&block->begin_);
    block->work_.invoke(block->work_.function, block->work_.arguments);
    release(&block->end_);
    block->leave();
  }
}

void Block::leave() {
  Thread &self = *running();
  Warp &warp = warps_[self.number / kLanes];
  for (uint32_t rest = warp.collective; rest; rest &= rest - 1) {
    const Thread &other = peer(self, lowest(rest));
    if (other.mask >> self.lane() & 1)
      fail(NZ_EMULATOR_DEADLOCK,
           text(other) + " for thread " + std::to_string(self.number) + ", which leaves");
  }
  self.state = State::kLeft;
  warp.ready &= ~(1u << self.lane());
  warp.left |= 1u << self.lane();
  left_++;
  if (at_barrier_) open_barrier();
  give_way();
}

uint64_t Block::meet(Collective collective, uint32_t mask, uint64_t value, uint32_t source, Site site) {
  Thread &self = *running();
  Warp &warp = warps_[self.number / kLanes];
  const uint32_t bit = 1u << self.lane();
  self.state = State::kCollective;
  self.collective = collective;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.site = site;
  warp.together = !warp.collective || (warp.together && meets(self, peer(self, lowest(warp.collective))));
  check_meeting(self, warp);
  warp.collective |= bit;
  warp.ready &= ~bit;
  char *order = nullptr;
  if (collective == Collective::kSync) {
    Order &group = warp.orders[mask];
    order = &group.places[group.meetings & 1];
    release(order);
  }
  if (all_there(self, warp)) complete(&warp, mask);
  give_way();
  if (order) acquire(order);
  return self.result;
}

// That everyone the thread waits for can come, and comes to the same place.
void Block::check_meeting(const Thread &self, const Warp &warp) {
  if (!(self.mask >> self.lane() & 1)) fail(NZ_EMULATOR_MISUSE, text(self) + " but is not one of them");
  const uint32_t missing = self.mask & ~(warp.ready | warp.collective);
  if (missing) {
    const uint32_t lane = lowest(missing);
    fail(NZ_EMULATOR_DEADLOCK,
         text(self) + ", but " +
             (warp.present >> lane & 1 ? text(peer(self, lane))
                                       : "lane " + std::to_string(lane) + " is not there"));
  }
  if (warp.together) return;
  for (uint32_t rest = warp.collective; rest; rest &= rest - 1) {
    const Thread &other = peer(self, lowest(rest));
    // One that does not wait for this thread may still come.
    if (!(self.mask >> other.lane() & other.mask >> self.lane() & 1)) continue;
    if (!meets(self, other)) fail(NZ_EMULATOR_DIVERGENCE, text(self) + ", but " + text(other));
  }
}

bool Block::all_there(const Thread &self, const Warp &warp) const {
  if ((warp.collective & self.mask) != self.mask) return false;
  if (warp.together) return true;
  for (uint32_t rest = self.mask; rest; rest &= rest - 1)
    if (!meets(self, peer(self, lowest(rest)))) return false;
  return true;
}

void Block::complete(Warp *warp, uint32_t mask) {
  const Thread &self = *running();
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    Thread &each = *threads_[self.number / kLanes * kLanes + lowest(rest)];
    each.result = result(each, mask);
    each.state = State::kReady;
  }
  warp->collective &= ~mask;
  warp->ready |= mask;
  if (self.collective == Collective::kSync) warp->orders[mask].meetings++;
}

uint64_t Block::result(const Thread &thread, uint32_t mask) const {
  uint64_t all = thread.value;
  uint32_t set = 0;
  switch (thread.collective) {
    case Collective::kSync:
      return 0;
    case Collective::kShuffle:
      if (!(mask >> thread.source & 1))
        block->fail(NZ_EMULATOR_MISUSE, text(thread) + " and reads lane " + std::to_string(thread.source) +
                                            ", which is not one of them");
      return peer(thread, thread.source).value;
    default:
      break;
  }
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const uint32_t lane = lowest(rest);
    const uint64_t value = peer(thread, lane).value;
    const bool counts = thread.collective == Collective::kMatchAny ? value == thread.value : value != 0;
    if (counts) set |= 1u << lane;
    if (lane == thread.lane()) continue;
    switch (thread.collective) {
      case Collective::kAdd:
        all = static_cast<uint32_t>(all + value);
        break;
      case Collective::kMin:
        all = std::min(all, value);
        break;
      case Collective::kMax:
        all = std::max(all, value);
        break;
      case Collective::kAnd:
        all &= value;
        break;
      case Collective::kOr:
        all |= value;
        break;
      case Collective::kXor:
        all ^= value;
        break;
      default:
        break;
    }
  }
  switch (thread.collective) {
    case Collective::kBallot:
    case Collective::kMatchAny:
      return set;
    case Collective::kAll:
      return set == mask;
    case Collective::kAny:
      return set != 0;
    default:
      return all;
  }
}

void Block::barrier(Site site) {
  Thread &self = *running();
  Warp &warp = warps_[self.number / kLanes];
  self.state = State::kBarrier;
  self.site = site;
  for (uint32_t rest = warp.collective; rest; rest &= rest - 1) {
    const Thread &other = peer(self, lowest(rest));
    if (other.mask >> self.lane() & 1) fail(NZ_EMULATOR_DEADLOCK, text(other) + ", but " + text(self));
  }
  warp.barrier |= 1u << self.lane();
  warp.ready &= ~(1u << self.lane());
  char *const order = &barrier_order_.places[barrier_order_.meetings & 1];
  release(order);
  at_barrier_++;
  open_barrier();
  give_way();
  acquire(order);
}

// Lets the threads go on that wait at the barrier if all are there.
void Block::open_barrier() {
  if (at_barrier_ + left_ < threads_.size()) return;
  const Thread *first = nullptr;
  for (const auto &thread : threads_) {
    if (thread->state == State::kBarrier && (!first || !same(first->site, thread->site))) {
      if (first) fail(NZ_EMULATOR_DIVERGENCE, text(*first) + ", but " + text(*thread));
      first = thread.get();
    }
  }
  for (const auto &thread : threads_)
    if (thread->state == State::kLeft) fail(NZ_EMULATOR_DEADLOCK, text(*first) + ", but " + text(*thread));
  for (const auto &thread : threads_) thread->state = State::kReady;
  for (uint32_t w = 0; w < warps_.size(); w++) {
    warps_[w].ready = warps_[w].barrier;
    warps_[w].barrier = 0;
    ready_warps_ |= 1u << w;
  }
  at_barrier_ = 0;
  barrier_order_.meetings++;
}

// Goes on with whoever is next, maybe this thread itself.
void Block::give_way() {
  Thread *const self = running();
  Warp &warp = warps_[self->number / kLanes];
  if (!warp.ready) ready_warps_ &= ~(1u << self->number / kLanes);
  if (!ready_warps_) {
    if (left_ != threads_.size()) fail(NZ_EMULATOR_DEADLOCK, text(*self) + ", and so does everyone else");
    Fiber::hand_over(&self->fiber, &host_);
    return;
  }
  end_turn();
  hand_over(warp.ready ? threads_[self->number / kLanes * kLanes + pick(warp.ready)].get() : next());
}

void Block::turn() {
  end_turn();
  hand_over(next());
}

void Block::end_turn() {
  const uint64_t taken = static_cast<uint64_t>(turn_length_ - turn_left);
  if (taken > steps_left_)
    fail(NZ_EMULATOR_ENDLESS, text(*running()) + " after the " +
                                  std::to_string(work_.launch.steps ? work_.launch.steps : kSteps) +
                                  " steps that all threads may take");
  steps_left_ -= taken;
}

void Block::hand_over(Thread *to) {
  Thread *const self = running();
  start_turn();
  if (to == self) return;
  place = to;
  Fiber::hand_over(&self->fiber, &to->fiber);
}

// A thread of any warp. There is a ready one.
Thread *Block::next() {
  const uint32_t w = pick(ready_warps_);
  return threads_[w * kLanes + pick(warps_[w].ready)].get();
}

uint32_t Block::pick(uint32_t set) {
  if (!work_.launch.seed) return lowest(set);
  const uint32_t from = chance_.next() % 32;
  return (lowest(set >> from | set << (32 - from) % 32) + from) % 32;
}

void Block::start_turn() {
  turn_length_ = static_cast<int64_t>(steps_left_);
  if (work_.launch.seed) turn_length_ = std::min<int64_t>(turn_length_, 1 + chance_.next() % kLongestTurn);
  turn_left = turn_length_;
}

void Block::fail(int kind, const std::string &message) {
  fault_ = {kind, work_.kernel + ", block " + text(place->block) + ": " + message};
  Fiber::hand_over(&running()->fiber, &host_, true);
  abort();  // nobody hands over to an abandoned fiber
}

uint64_t meet(Collective collective, uint32_t mask, uint64_t value, uint32_t source, Site site) {
  return block->meet(collective, mask, value, source, site);
}

void barrier(Site site) { block->barrier(site); }

void misuse(const char *what, Site site) {
  block->fail(NZ_EMULATOR_MISUSE,
              "thread " + std::to_string(running()->number) + ": " + what + " at " + text(site));
}

void *dynamic_shared() { return block->dynamic_shared(); }

Copies *copies() { return &running()->copies; }

bool is_early() { return block->is_early(); }

}  // namespace nz::emulator

// Called by every basic block of a kernel (-fsanitize-coverage=trace-pc).
extern "C" void __sanitizer_cov_trace_pc() {
  using namespace nz::emulator;
  if (--turn_left < 0 && place) block->turn();
}
