// State of one dispatch. Threadgroups run one after another; every GPU thread of the running one is a fiber with a
// stack of its own, and fibers hand over only where the source has a barrier or a simdgroup operation.
//
//   dispatch.cpp       the launch: buffers in, threadgroups, buffers and counters out
//   scheduler.cpp      fibers, ready queue, start and end of a threadgroup
//   rendezvous.cpp     barriers and the meeting of a simdgroup's lanes, divergence
//   simdgroup.cpp      shuffles, reductions, votes, matrix multiply
//   tensor_ops.cpp     products of tensors, row reductions; tensor_layout.cpp: which lane holds which element
//   memory.cpp         regions (device buffers, threadgroup variables): who owns an address, out of bounds
//   shadow.cpp         what happened to each cell: races, uninitialised reads, counts of reads and writes
//   instrumentation.cpp  the hooks that instrumented kernels call for each access
//   private_memory.cpp   bounds of private arrays (the build with sanitizer="address")
//   traps.cpp          undefined behaviour (sanitizer="undefined") and processor traps
//   faults.cpp         the list of findings
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>
#include "interface.h"

namespace runtime {

constexpr uint32_t kLanes = 32;
constexpr uint32_t kMaxThreads = 1024;
constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kPage = 4096;
constexpr size_t kGuard = 1 << 20;        // unmapped bytes on both sides of a device buffer
constexpr size_t kArenaBytes = 16 << 20;  // all threadgroup variables of one group, red zones included
constexpr size_t kRedZone = 4096;         // between threadgroup variables
constexpr size_t kSlotBytes = 64;         // largest value of a simdgroup operation

// The numbers of Report's fault kinds (report.py keeps the same order)
enum FaultKind : int32_t {
  OUT_OF_BOUNDS,
  UNINITIALISED_READ,
  DATA_RACE,
  BARRIER_DIVERGENCE,
  SIMDGROUP_DIVERGENCE,
  PARTIAL_SIMDGROUP,
  INACTIVE_LANE,
  THREADGROUP_MEMORY,
  READ_ONLY_WRITE,
  WILD_ACCESS,
  MISALIGNED,
  PRIVATE_MEMORY,
  UNDEFINED_BEHAVIOUR,
};

enum Schedule : uint32_t { FORWARD, REVERSE, RANDOM, GREEDY };
enum MemoryFlags { MEM_DEVICE = 1, MEM_THREADGROUP = 2 };

// Positions a kernel may ask for, by number (signature.py keeps the same order)
enum Position {
  THREAD_IN_GRID,
  THREAD_IN_GROUP,
  GROUP_IN_GRID,
  THREADS_PER_GROUP,
  GROUPS_PER_GRID,
  THREADS_PER_GRID,
  THREAD_INDEX,
  LANE,
  SIMDGROUP_INDEX,
  SIMDGROUP_SIZE,
  SIMDGROUPS_PER_GROUP,
  DISPATCHED_THREADS_PER_GROUP,
};

typedef void (*Entry)(const metal_emulator_arguments*);

// ---- fibers ---------------------------------------------------------------------------------------------------------
enum FiberState : uint8_t { READY, AT_BARRIER, AT_SIMDGROUP_OPERATION, RETURNED };

// Those from MATRIX_ACCESS on take all lanes of a simdgroup
enum Operation : uint32_t {
  SHUFFLE,
  REDUCE,
  PREFIX,
  BALLOT,
  SIMDGROUP_BARRIER,
  MATRIX_ACCESS,
  MATRIX_MULTIPLY,
  TENSOR_PRODUCT,
  TENSOR_OPERATION,
};

// Where a fiber waits: the operation, and where it stands in the source and in the compiled code
struct Waiting {
  uint32_t operation;
  uint32_t site;
  void* code;
  bool operator==(const Waiting& o) const { return operation == o.operation && site == o.site && code == o.code; }
};

// Barriers a fiber has passed, by the memory that they order
struct Epoch {
  uint32_t device;
  uint32_t threadgroup;
};

struct Fiber {
  void* stack_pointer;
  char* stack;
  uint32_t index;
  uint32_t lane;
  uint32_t simdgroup;
  FiberState state;
  Waiting waiting;
  Epoch simd_epoch;
  metal_emulator_arguments arguments;
};

// What the lanes of a simdgroup give each other in one operation. There are two in turn: a lane that runs ahead fills
// the next one while others still read this one, and can get no further.
struct Exchange {
  alignas(32) unsigned char slot[kLanes][kSlotBytes];
  alignas(32) unsigned char result[kLanes][kSlotBytes];
  uint32_t active;  // bit per lane
  bool reduced;     // `result` has been computed by the first lane that came back
};

struct Simdgroup {
  uint32_t alive;
  uint32_t waiting;
  uint32_t turn;
  Exchange exchange[2];
};

// ---- memory ---------------------------------------------------------------------------------------------------------
// One access to a cell, for the question whether a later one is ordered after it
struct Stamp {
  uint32_t epoch;  // of the threadgroup; 0: never accessed
  uint32_t simd_epoch;
  uint32_t group;
  uint16_t thread;  // kManyThreads: several threads of one simdgroup since its last barrier
  uint8_t simdgroup;
  uint8_t atomic;
};
constexpr uint16_t kManyThreads = 0xFFFF;

struct Cell {
  Stamp write;
  Stamp read[2];  // of two different simdgroups: enough to find one that a writer is not ordered with
  uint16_t reads;
  uint16_t writes;
  bool initialised;
};

struct Region {
  char* begin;
  char* end;
  char* reach_begin;  // addresses around it that only a stray index of this region can produce
  char* reach_end;
  uint32_t cell_shift;  // a cell has 1 << cell_shift bytes
  bool threadgroup;
  bool read_only;
  const void* key;  // of a threadgroup variable
  std::string name;
  std::vector<Cell> cells;
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
};

// ---- exchange with exchange.py -------------------------------------------------------------------------------------
struct BufferIn {
  void* data;
  uint64_t bytes;
  uint32_t cell_shift;
  uint32_t read_only;
  uint32_t initialised;
  uint32_t label;         // buffer index that messages show
  uint32_t in_place;      // neither copied nor watched
  uint16_t* read_counts;  // one per cell, or null
  uint16_t* write_counts;
  uint64_t bytes_read;  // filled in
  uint64_t bytes_written;
};

struct PointerIn {  // a [[buffer(n)]] pointer: into one of the buffers; buffer -1 if unbound
  int64_t buffer;
  uint64_t offset;
};

struct Options {
  uint32_t schedule;
  uint32_t seed;
  uint32_t early_return;  // threads may return before a barrier that others reach
  uint32_t threadgroup_limit;
  uint32_t flush_denormals;
  uint32_t private_bounds;  // the kernel was compiled with sanitizer="address"
};

struct FaultOut {
  int32_t kind;
  uint32_t group[3];
  uint32_t thread[3];
  uint64_t code[2];  // offsets into the kernel library, 0: none
  char detail[232];
};
constexpr uint32_t kMaxFaults = 16;

struct EventOut {
  char name[48];
  uint64_t count[kLanes];  // by lane
};
constexpr uint32_t kMaxEvents = 64;

struct Result {
  uint64_t threadgroups;
  uint64_t barriers;
  uint64_t simdgroup_barriers;
  uint64_t simdgroup_operations;  // shuffles, reductions, votes
  uint64_t matrix_accesses;
  uint64_t matrix_multiplies;
  uint64_t tensor_products;
  uint64_t threadgroup_bytes;  // the most that one group had
  uint64_t threadgroup_bytes_read;
  uint64_t threadgroup_bytes_written;
  uint32_t fault_count;
  uint32_t event_count;
  uint64_t events_lost;
  FaultOut faults[kMaxFaults];
  EventOut events[kMaxEvents];
};

// ---- the dispatch --------------------------------------------------------------------------------------------------
struct Dispatch {
  Entry entry;
  Options options;
  Result* result;
  uint64_t random_state;
  bool stopped;  // a fault after which nothing can go on

  std::vector<Fiber> fibers;
  std::vector<Simdgroup> simdgroups;
  uint32_t threads;  // of the running group
  uint32_t alive;
  uint32_t at_barrier;
  int barrier_flags;
  uint32_t current;
  uint32_t group;
  Epoch epoch;
  void* main_stack_pointer;
  char* stacks;

  std::vector<Region*> buffers;
  std::vector<Region*> variables;
  Region* last_region;
  char* arena;
  size_t arena_used;
  size_t threadgroup_bytes;
  std::vector<uint64_t> argument_bytes;  // of [[threadgroup(n)]]
  std::vector<void*> argument_memory;

  char* code_begin;
  char* code_end;
};

extern Dispatch g;

inline Fiber& current_fiber() { return g.fibers[g.current]; }
inline bool on_own_stack(const char* p) {
  const Fiber& f = current_fiber();
  return p >= f.stack && p < f.stack + kStackBytes;
}

// scheduler.cpp
void allocate_fibers();
uint32_t random_below(uint32_t n);
void release(uint32_t* fibers, uint32_t n);
void block();
[[noreturn]] void leave();
void run_group(uint32_t threads);

// rendezvous.cpp
Exchange* meet(const void* value, unsigned bytes, Operation operation, uint32_t site, void* code);
void thread_returned(uint32_t simdgroup);
void report_deadlock();

// memory.cpp
Region* find_region(const char* p);
void begin_group_memory();
void free_variables();
bool in_code(const char* p);

// shadow.cpp
void access(const void* address, size_t bytes, bool write, bool atomic, void* code, bool together = false);
Region* locate(const char* p, size_t bytes, bool write, void* code);

// private_memory.cpp
bool private_bytes_valid(const char* p, size_t bytes);
bool constant_bytes_valid(const char* p, size_t bytes);
void reset_private_memory();

// traps.cpp
void catch_traps();
void release_traps();

// faults.cpp
void report(FaultKind kind, void* code, const char* format, ...) __attribute__((format(printf, 3, 4)));
void report_two(FaultKind kind, void* code, void* other_code, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
void stop();

}  // namespace runtime
