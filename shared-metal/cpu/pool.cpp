#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sched.h>
#endif

namespace natten {
namespace {

constexpr int kMaxThreads = 256;
// Scratch memory that a thread keeps although its next call needs less
constexpr int64_t kMaxKept = int64_t(16) << 20;
// How long an idle thread looks for work before it sleeps: waking it takes about as long.
constexpr std::chrono::microseconds kSpin(30);

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until done() or until kSpin is over, and says which
template <typename Done>
bool spin(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

int machine_threads() {
#if defined(__APPLE__)
  int cores = 0;
  size_t size = sizeof(cores);
  if (sysctlbyname("hw.perflevel0.logicalcpu", &cores, &size, nullptr, 0) == 0 && cores > 0) return cores;
#elif defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return int(std::thread::hardware_concurrency());
}

// The default number of threads of a call, and whether it comes from NATTEN_NUM_THREADS
struct Threads {
  int number;
  bool set, sound;
};

int clamp_threads(long number) { return number < 1 ? 1 : (number < kMaxThreads ? int(number) : kMaxThreads); }

Threads chosen_threads() {
  const char* asked = getenv("NATTEN_NUM_THREADS");
  if (!asked || !*asked) return {clamp_threads(machine_threads()), false, true};
  char* end = nullptr;
  errno = 0;
  const long number = strtol(asked, &end, 10);
  const bool sound = errno == 0 && end != asked && *end == '\0' && number > 0;
  return {clamp_threads(sound ? number : machine_threads()), sound, sound};
}

const Threads& threads_of_process() {
  static const Threads threads = chosen_threads();
  return threads;
}

struct Task {
  int64_t units;
  int64_t step;  // units of a range
  PoolJob job;
  void* context;
  std::atomic<int64_t> next{0};

  void work(int worker) {
    for (;;) {
      const int64_t first = next.fetch_add(step, std::memory_order_relaxed);
      if (first >= units) return;
      job(context, first, first + step < units ? first + step : units, worker);
    }
  }
};

// A task is open while threads may join it. Its owner closes it when no range is left, and waits for those inside.
class Pool {
 public:
  Pool() { threads_.reserve(kMaxThreads); }

  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      signal_.fetch_add(1);
    }
    wake_.notify_all();
    for (const pthread_t thread : threads_) pthread_join(thread, nullptr);
  }

  bool idle() {
    const std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    return owner.owns_lock();
  }

  // False if the pool is taken
  bool try_run(Task& task, int workers) {
    const std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    start(workers - 1);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      seats_ = workers;
      taken_ = 1;
      signal_.fetch_add(1);
    }
    wake_.notify_all();
    task.work(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      task_ = nullptr;
    }
    if (!spin([this] { return inside_.load() == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return inside_.load() == 0; });
    }
    // the last worker may still hold the lock under which it signalled
    const std::lock_guard<std::mutex> lock(mutex_);
    return true;
  }

 private:
  // As many threads as asked for, or as the system gives
  void start(int number) {
    while (int(threads_.size()) < number) {
      pthread_t thread;
      if (pthread_create(&thread, nullptr, enter, this) != 0) return;
      threads_.push_back(thread);
    }
  }

  static void* enter(void* pool) {
    static_cast<Pool*>(pool)->serve();
    return nullptr;
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      while (!stop_ && task_ && taken_ < seats_ && signal_.load() != seen) {
        seen = signal_.load();
        Task& task = *task_;
        const int worker = taken_++;
        inside_.fetch_add(1);
        lock.unlock();
        task.work(worker);
        lock.lock();
        if (inside_.fetch_sub(1) == 1) done_.notify_all();
      }
      if (stop_) return;
      seen = signal_.load();
      lock.unlock();
      spin([&] { return signal_.load() != seen; });
      lock.lock();
      wake_.wait(lock, [&] { return signal_.load() != seen; });
    }
  }

  std::mutex owner_;  // held by the caller whose task runs
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_, done_;
  Task* task_ = nullptr;
  int seats_ = 0, taken_ = 0;
  bool stop_ = false;
  std::atomic<uint64_t> signal_{0};  // changes with every task
  std::atomic<int> inside_{0};       // threads in a task, the owner left out
  std::vector<pthread_t> threads_;
};

std::atomic<Pool*> the_pool{nullptr};

std::atomic<natten_cpu_region> the_region{nullptr};

// The threads of the parent do not exist in a forked child, and its locks may be held for ever: the child abandons
// the parent's pool without touching it, and never asks the host for threads. The pool stays reachable, so that leak
// checkers do not report it.
std::atomic<Pool*> the_parents_pool{nullptr};
void forget_threads() {
  the_parents_pool.store(the_pool.exchange(nullptr));
  the_region.store(nullptr);
}

void watch_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_threads);
  (void)registered;
}

// Stops the threads when the library is unloaded; a pool that is still in use is left until the process ends.
struct AtExit {
  ~AtExit() {
    Pool* const last = the_pool.exchange(nullptr);
    if (last && last->idle()) delete last;
  }
};

// NULL if there is no memory for one
Pool* pool() {
  watch_forks();
  static const AtExit at_exit;
  if (Pool* found = the_pool.load()) return found;
  try {
    Pool* made = new Pool;
    Pool* found = nullptr;
    if (the_pool.compare_exchange_strong(found, made)) return made;
    delete made;
    return found;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// A task on the host's threads, of which `workers` take part
struct Shared {
  Task* task;
  int workers;
  std::atomic<int> taken{0};

  static void enter(void* shared) {
    Shared& own = *static_cast<Shared*>(shared);
    const int worker = own.taken.fetch_add(1, std::memory_order_relaxed);
    if (worker < own.workers) own.task->work(worker);
  }
};

std::mutex the_region_owner;  // held by the caller whose task runs there

// The region to run on, or NULL
natten_cpu_region region_in_use() { return threads_of_process().set ? nullptr : the_region.load(); }

// False if another caller has the region's threads
bool try_region(natten_cpu_region region, Task& task, int workers) {
  const std::unique_lock<std::mutex> owner(the_region_owner, std::try_to_lock);
  if (!owner.owns_lock()) return false;
  Shared shared = {&task, workers};
  // All of the host's threads, as its own calls do: GNU OpenMP ends those that a smaller region leaves out.
  region(Shared::enter, &shared, 0, 0);
  return true;
}

}  // namespace

void pool_use_region(natten_cpu_region region) {
  watch_forks();
  the_region.store(region);
}

int pool_threads() { return threads_of_process().number; }

bool pool_setting_is_sound() { return threads_of_process().sound; }

int pool_workers(int threads, int64_t units) {
  const Threads& own = threads_of_process();
  int64_t workers = own.number;
  if (threads > 0) workers = own.set && own.number < threads ? own.number : clamp_threads(threads);
  if (workers > units) workers = units;
  return workers < 1 ? 1 : int(workers);
}

void pool_run(int64_t units, int workers, PoolJob job, void* context) {
  // Ranges of a few units: enough of them to even out the load, and few enough that the counter does not matter
  const int64_t step = units / (int64_t(workers) * 16);
  Task task = {units, step < 1 ? 1 : (step > 16 ? 16 : step), job, context};
  if (workers > 1) {
    if (const natten_cpu_region region = region_in_use()) {
      if (try_region(region, task, workers)) return;
    } else if (Pool* const taken = pool()) {
      if (taken->try_run(task, workers)) return;
    }
  }
  task.work(0);
}

void* allocate(int64_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, 64, size_t(bytes)) == 0 ? memory : nullptr;
}

void release(void* memory) { free(memory); }

void* scratch_memory(int64_t bytes) {
  struct Kept {
    void* memory = nullptr;
    int64_t bytes = 0;
    ~Kept() { release(memory); }
  };
  static thread_local Kept kept;
  if (bytes > kept.bytes || kept.bytes > kMaxKept) {
    release(kept.memory);
    kept.memory = allocate(bytes);
    kept.bytes = kept.memory ? bytes : 0;
  }
  return kept.memory;
}

}  // namespace natten
