#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace saekern {
namespace {

// A thread of the pool, and the cores that it may run on.
//
// A halted virtual processor looks busy to Linux, which therefore wakes a thread on its waker's own core, behind the
// waker. Measured on a virtual machine with 2 cores: the helper came 2 ms late in 58 of 60 wakes, and 50 µs late where
// the waker's core was closed to it. On bare metal the two system calls cost 2 µs and gain nothing.
struct Helper {
  // By the helper, before it sleeps.
  void fall_asleep() {
#if defined(__linux__)
    if (pthread_getaffinity_np(pthread_self(), sizeof home, &home) != 0) CPU_ZERO(&home);
#endif
    asleep = true;
  }

  // By the waker: the helper may run anywhere that it might, but not here.
  void keep_off_this_core() {
#if defined(__linux__)
    const int here = sched_getcpu();
    if (here < 0 || here >= CPU_SETSIZE || !CPU_ISSET(here, &home) || CPU_COUNT(&home) < 2) return;
    cpu_set_t elsewhere = home;
    CPU_CLR(here, &elsewhere);
    away = pthread_setaffinity_np(thread.native_handle(), sizeof elsewhere, &elsewhere) == 0;
#endif
  }

  // By the helper, once it runs.
  void wake_up() {
    asleep = false;
#if defined(__linux__)
    if (away) (void)pthread_setaffinity_np(pthread_self(), sizeof home, &home);
    away = false;
#endif
  }

  std::thread thread;
  bool asleep = false;
#if defined(__linux__)
  cpu_set_t home{};
  bool away = false;
#endif
};

struct Job {
  Job(int64_t items_, const std::function<void(int64_t, int)>& body_) : items(items_), body(&body_) {}

  void work(int worker) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      try {
        (*body)(i, worker);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(items, std::memory_order_relaxed);
      }
    }
  }

  const int64_t items;
  const std::function<void(int64_t, int)>* body;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;
};

// Waits for `done` without going to sleep, for as long as a pause between two operations lasts. To wake a sleeping
// thread costs up to a millisecond on a virtual machine, as much as a whole decoder pass; `yield` leaves the core to
// anybody who wants it meanwhile.
template <typename Condition>
void linger(const Condition& done) {
  constexpr std::chrono::microseconds kPause{300};
  const auto until = std::chrono::steady_clock::now() + kPause;
  while (!done() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
}

class Pool {
 public:
  void run(Job& job, int helpers) {
    // Callers from several Python threads take turns: two loops at once would only share the same cores.
    std::lock_guard<std::mutex> turn(run_mutex_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(threads_.size()) < helpers) {
        threads_.emplace_back(new Helper);
        Helper& helper = *threads_.back();
        helper.thread =
            std::thread([this, &helper, worker = static_cast<int>(threads_.size())] { loop(helper, worker); });
      }
      for (int i = 0; i < helpers; ++i)
        if (threads_[i]->asleep) threads_[i]->keep_off_this_core();
      job_ = &job;
      helpers_ = helpers;
      ++generation_;
    }
    start_.notify_all();
    job.work(0);
    {
      // Every item is taken: a helper that has not come by now is not waited for. It may be kept off its core for
      // milliseconds by another library's spinning threads.
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = nullptr;
    }
    const auto finished = [this] { return active_.load(std::memory_order_acquire) == 0; };
    linger(finished);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, finished);
  }

 private:
  void loop(Helper& helper, int worker) {
    uint64_t seen = 0;  // the last job that this worker took or found finished
    for (;;) {
      linger([&] { return generation_.load(std::memory_order_relaxed) != seen; });
      std::unique_lock<std::mutex> lock(mutex_);
      if (generation_ == seen) {
        helper.fall_asleep();
        start_.wait(lock, [&] { return generation_ != seen; });
        helper.wake_up();
      }
      seen = generation_;
      if (!job_ || worker > helpers_) continue;
      Job* job = job_;
      ++active_;
      lock.unlock();
      job->work(worker);
      if (active_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        lock.lock();
        done_.notify_one();
      }
    }
  }

  std::mutex run_mutex_, mutex_;
  std::condition_variable start_, done_;
  std::vector<std::unique_ptr<Helper>> threads_;
  Job* job_ = nullptr;
  int helpers_ = 0;
  std::atomic<int> active_{0};
  std::atomic<uint64_t> generation_{0};  // counts jobs
};

// Never destroyed: worker threads sleep in it until the process ends.
Pool* pool = nullptr;
std::mutex pool_mutex;

Pool& the_pool() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (!pool) {
    pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    // A forked child inherits the pool object but none of its threads: it leaks the parent's and makes its own.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
    (void)registered;
#endif
  }
  return *pool;
}

}  // namespace

void parallel_for(int64_t items, int threads, const std::function<void(int64_t, int)>& body) {
  Job job(items, body);
  const int64_t helpers = std::min<int64_t>(threads, items) - 1;
  if (helpers <= 0) {
    job.work(0);
  } else {
    the_pool().run(job, static_cast<int>(helpers));
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace saekern
