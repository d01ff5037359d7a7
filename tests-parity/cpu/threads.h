// Calls from several threads at once, in forked processes, and on threads of the host.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "pool.h"
#include "running.h"

// Large enough that every call asks for threads
static Fused large_fused(Random& random) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = 2, p.batch = 2, p.heads = 4, p.kv_heads = 2, p.head_dim = p.head_dim_v = 16;
  p.additional = 3, p.scale = 0.25;
  for (int a = 0; a < 2; ++a) {
    set_length(p, a, 24), p.kernel_size[a] = 5, p.stride[a] = p.dilation[a] = 1;
  }
  Fused f = random_fused(random, p);
  f.has_rpb = true;
  return f;
}

// How often threads of the host were asked for
static std::atomic<int> entered{0}, wrongly{0};

// Threads of a host
template <int THREADS>
static void region(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  ++entered;
  wrongly += threads != 0 || flags != 0;
  std::vector<std::thread> others;
  for (int i = 1; i < THREADS; ++i) others.emplace_back(body, data);
  body(data);
  for (std::thread& other : others) other.join();
}

// Each unit is done once, by one of the workers that there is scratch memory for, of however many threads. A unit lasts
// long enough for all of them to come and ask for one.
static void test_workers(int workers) {
  struct Done {
    std::vector<std::atomic<int>> by;
    static void job(void* done, int64_t first, int64_t last, int worker) {
      for (int64_t unit = first; unit < last; ++unit) {
        static_cast<Done*>(done)->by[size_t(unit)] += worker + 1;
        usleep(100);
      }
    }
  };
  constexpr int kUnits = 64;
  Done done{std::vector<std::atomic<int>>(kUnits)};
  natten::pool_run(kUnits, workers, Done::job, &done);
  for (const std::atomic<int>& worker : done.by) check(worker >= 1 && worker <= workers, "the worker", "workers");
}

// A host may have more or fewer threads than a call asks for
static void test_regions(Random& random) {
  Fused f = large_fused(random);
  Results expected = outputs(random, f);
  check(run_fused(f, expected, 1) == NATTEN_OK, "status", "regions");
  for (natten_cpu_region each : {region<6>, region<2>, region<1>}) {
    natten_cpu_use_region(each);
    for (int threads = 1; threads <= 4; ++threads) {
      Results r = expected;
      for (Array* a : r.all()) a->bytes.assign(a->bytes.size(), kUntouched);
      test_workers(threads);
      const int before = entered;
      check(run_fused(f, r, threads) == NATTEN_OK, "status", "regions");
      check((entered > before) == (threads > 1), "whether the host's threads were used", "regions");
      for (size_t i = 0; i < r.all().size(); ++i) {
        check(r.all()[i]->bytes == expected.all()[i]->bytes, "the result depends on the region", "regions");
      }
    }
  }
  check(wrongly == 0, "what a region was asked for", "regions");
}

// The variable says how many threads may be used: those of a host, however many, stay asleep
static void test_limited(Random& random) {
  Fused f = large_fused(random);
  Results r = outputs(random, f);
  natten_cpu_use_region(region<2>);
  check(run_fused(f, r, 0) == NATTEN_OK && entered == 0, "the host's threads were used", "limited");
  natten_cpu_use_region(nullptr);
}

static void test_callers(Random& random) {
  Fused f = large_fused(random);
  Results expected = outputs(random, f);
  check(run_fused(f, expected, 1) == NATTEN_OK, "status", "callers");
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&, c] {
      Fused own = f;
      for (int round = 0; round < 3; ++round) {
        Results r = expected;
        r.out.bytes.assign(r.out.bytes.size(), kUntouched);
        wrong[size_t(c)] += run_fused(own, r, c % 3) != NATTEN_OK;
        for (size_t i = 0; i < r.all().size(); ++i) wrong[size_t(c)] += r.all()[i]->bytes != expected.all()[i]->bytes;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int count : wrong) check(count == 0, "one of several callers got another result", "callers");
}

static void test_fork(Random& random) {
  Fused f = large_fused(random);
  Results expected = outputs(random, f), r = expected;
  check(run_fused(f, expected, 0) == NATTEN_OK, "status", "fork");
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a child that hangs is killed, which is not a clean exit
    const int before = entered;
    const bool same = run_fused(f, r, 0) == NATTEN_OK && r.key.bytes == expected.key.bytes;
    exit(same && entered == before ? 0 : 1);
  }
  int status = -1;
  check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child", "fork");
  check(run_fused(f, r, 0) == NATTEN_OK && r.key.bytes == expected.key.bytes, "the parent", "fork");
}

