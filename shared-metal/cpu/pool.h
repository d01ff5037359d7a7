// The thread pool: threads that sleep until there is work, as many as the calls so far have asked for.
//
//   pool_run(units, workers, job, context)    calls job(context, first, last, worker) for ranges that cover 0 .. units
//
//        units   0 1 2 3 | 4 5 6 7 | 8 9 ...     ranges are dealt one by one, by an atomic counter,
//                caller    thread    caller      to the caller and to whichever threads wake in time
//
// Which worker computes which range changes from run to run, so a job's result must not depend on it. Calls may come
// from any number of threads at once: one has the threads, the others compute alone. A forked child starts its own pool.
//
// Where the host has threads of its own, pool_use_region() lets a call run on those instead: a host's idle threads may
// keep the cores busy while they wait (GNU OpenMP's do, for milliseconds), and would take them from the pool's.
// These are plain functions of C types, because the kernels, compiled once per instruction set, can share nothing more.
#pragma once

#include <stdint.h>

#include "natten_cpu.h"

namespace natten {

typedef void (*PoolJob)(void* context, int64_t first, int64_t last, int worker);

// Number of workers, the caller included, for a call with that many units: `threads`, but no more than
// NATTEN_NUM_THREADS where that is set; for threads = 0 pool_threads()
int pool_workers(int threads, int64_t units);

// NATTEN_NUM_THREADS, read once, else performance cores, else cores allowed
int pool_threads();

// natten_cpu_use_region. In a forked child the host's threads do not exist; where NATTEN_NUM_THREADS is set, a region
// would wake more of them than it allows.
void pool_use_region(natten_cpu_region region);

// False if NATTEN_NUM_THREADS is set to anything but a positive number
bool pool_setting_is_sound();

// worker is below `workers`. Returns when all units are done.
void pool_run(int64_t units, int workers, PoolJob job, void* context);

// 64-byte aligned memory, NULL if there is none
void* allocate(int64_t bytes);
void release(void* memory);

// The same, but the calling thread's own until it asks again or ends: malloc takes long for a block of this size, and
// for what comes after it is given back
void* scratch_memory(int64_t bytes);

}  // namespace natten
