// Workers wait for calls; a call offers places, works itself, takes back what nobody took, and waits for
// those who came. So a call never waits for a worker that is busy elsewhere, and needs none to finish.
#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>

#include "neuzip.h"

namespace nz {
namespace {

constexpr int kMaxThreads = 256;
constexpr size_t kStackBytes = 1 << 20;  // the usual eight count where a process's memory is limited
constexpr int kSpins =
    1 << 10;  // some 20 µs: what a sleeping thread takes to wake, so that waiting costs at most twice

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as condition() is; false if that takes too long to spin for it.
template <typename Condition>
bool spin_until(const Condition &condition) {
  for (int spin = 0; spin < kSpins; spin++) {
    if (condition()) return true;
    relax();
  }
  return false;
}

// A call of run_threads, on its caller's stack: in the pool's list while `places` are left.
struct Call {
  void (*work)(void *);
  void *context;
  int places;                   // for workers; owned by the pool's mutex
  std::atomic<int> working{0};  // workers; rises under the mutex only
  Call *previous = nullptr, *next = nullptr;
};

class Pool {
 public:
  void run(Call *call) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start_workers(call->places);
      if (workers_) link(call);
    }
    called_.notify_all();
    call->work(call->context);
    std::unique_lock<std::mutex> lock(mutex_);
    if (call->next) unlink(call);
    lock.unlock();
    const auto finished = [call] { return call->working.load(std::memory_order_acquire) == 0; };
    if (spin_until(finished)) return;
    lock.lock();
    finished_.wait(lock, finished);
  }

 private:
  // Detached: they wait for calls until the process ends. As many as the system has room for.
  void start_workers(int wanted) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    const auto serve = [](void *pool) -> void * { static_cast<Pool *>(pool)->serve(); };
    for (pthread_t worker; workers_ < wanted; workers_++)
      if (pthread_create(&worker, &attributes, serve, this) != 0) break;
    pthread_attr_destroy(&attributes);
  }

  // Calls in the order in which they came, in a ring through `calls_`.
  void link(Call *call) {
    call->previous = calls_.previous, call->next = &calls_;
    call->previous->next = call->next->previous = call;
    offers_.fetch_add(1, std::memory_order_relaxed);
  }

  void unlink(Call *call) {
    call->previous->next = call->next, call->next->previous = call->previous;
    call->previous = call->next = nullptr;
    offers_.fetch_sub(1, std::memory_order_relaxed);
  }

  [[noreturn]] void serve() {
    for (;;) {
      spin_until([this] { return offers_.load(std::memory_order_relaxed) != 0; });
      std::unique_lock<std::mutex> lock(mutex_);
      called_.wait(lock, [this] { return calls_.next != &calls_; });
      Call *const call = calls_.next;
      call->working.fetch_add(1, std::memory_order_relaxed);
      if (--call->places == 0) unlink(call);
      lock.unlock();
      call->work(call->context);
      // The caller may be gone with its call once `working` is 0. Under the lock, it cannot miss the notice.
      if (call->working.fetch_sub(1, std::memory_order_acq_rel) != 1) continue;
      lock.lock();
      finished_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable called_, finished_;
  Call calls_{nullptr, nullptr, 0, {0}, &calls_, &calls_};
  std::atomic<int> offers_{0};  // calls in the list
  int workers_ = 0;
};

// Never destroyed: its workers wait in it until the process ends.
std::atomic<Pool *> the_pool{nullptr};

std::atomic<nz_parallel> the_team{nullptr};

// A forked child has no workers, and may have inherited a locked mutex: it makes a pool of its own when it
// needs one. Registered when the library is loaded, before there can be anything to forget.
const int atfork_error = pthread_atfork(nullptr, nullptr, [] {
  the_pool = nullptr;
  the_team = nullptr;
});

// Null if memory is short.
Pool *pool() {
  Pool *found = the_pool.load(std::memory_order_acquire);
  if (found || atfork_error != 0) return found;
  Pool *const made = new (std::nothrow) Pool;
  if (!made || the_pool.compare_exchange_strong(found, made)) return made;
  delete made;
  return found;
}

}  // namespace

void run_on_threads(int threads, uint64_t tasks, void (*work)(void *), void *context) {
  const bool in_team = threads > 0 && (threads & NZ_TEAM);
  const int most = std::clamp(in_team ? threads - NZ_TEAM : threads, 1, kMaxThreads);
  const uint64_t wanted = std::min<uint64_t>(static_cast<uint64_t>(most), tasks);
  if (wanted <= 1) return work(context);
  // Without a handler for forks, a child would ask for a team that it does not have.
  const nz_parallel team = in_team && atfork_error == 0 ? the_team.load() : nullptr;
  if (team) return team(work, context, static_cast<unsigned>(wanted), 0);
  Pool *const workers = pool();
  if (!workers) return work(context);
  Call call{work, context, static_cast<int>(wanted) - 1};
  workers->run(&call);
}

}  // namespace nz

extern "C" void nz_set_team(nz_parallel parallel) { nz::the_team = parallel; }
