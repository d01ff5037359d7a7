// One launch: copies buffers into guarded memory, runs the threadgroups, copies buffers and counters out
#include <dlfcn.h>
#include <immintrin.h>
#include <link.h>
#include <sys/mman.h>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include "runtime.h"

namespace runtime {

// ---- device buffers ------------------------------------------------------------------------------------------------
// Each buffer gets a mapping of its own with unmapped memory around it; its data ends as near to the end of the mapping
// as an alignment of 16 bytes allows. A buffer bound in place is neither copied nor watched: only its name is known.
static Region* new_buffer(const BufferIn& in) {
  if (in.in_place) {
    Region* r = new Region();
    r->begin = (char*)in.data;
    r->end = r->begin + in.bytes;
    r->read_only = in.read_only;
    r->name = "buffer(" + std::to_string(in.label) + ")";
    return r;
  }
  size_t pages = std::max<size_t>(1, (in.bytes + kPage - 1) / kPage) * kPage;
  char* mapping =
      (char*)mmap(nullptr, pages + 2 * kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  mprotect(mapping + kGuard, pages, PROT_READ | PROT_WRITE);
  Region* r = new Region();
  r->reach_begin = mapping;
  r->reach_end = mapping + pages + 2 * kGuard;
  r->begin = mapping + kGuard + ((pages - in.bytes) & ~(size_t)15);
  r->end = r->begin + in.bytes;
  r->cell_shift = in.cell_shift;
  r->threadgroup = false;
  r->read_only = in.read_only;
  r->name = "buffer(" + std::to_string(in.label) + ")";
  r->cells.resize((in.bytes >> in.cell_shift) + 1);
  for (Cell& cell : r->cells) cell.initialised = in.initialised;
  if (in.initialised) {
    memcpy(r->begin, in.data, in.bytes);
  } else {
    memset(r->begin, 0xFF, in.bytes);
  }
  return r;
}

static void finish_buffer(Region* r, BufferIn& in) {
  if (in.in_place) {
    delete r;
    return;
  }
  if (!r->read_only) memcpy(in.data, r->begin, in.bytes);
  in.bytes_read = r->bytes_read;
  in.bytes_written = r->bytes_written;
  for (size_t c = 0; in.read_counts && c << in.cell_shift < in.bytes; c++) {
    in.read_counts[c] = r->cells[c].reads;
    in.write_counts[c] = r->cells[c].writes;
  }
  munmap(r->reach_begin, r->reach_end - r->reach_begin);
  delete r;
}

// ---- the grid ------------------------------------------------------------------------------------------------------
struct Grid {
  uint32_t threads[3];
  uint32_t per_group[3];
  uint32_t groups[3];
};

static void set_positions(const Grid& grid, const uint32_t at[3], const uint32_t size[3], uint32_t total) {
  for (uint32_t i = 0; i < total; i++) {
    auto& v = g.fibers[i].arguments.position;
    const uint32_t thread[3] = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
    for (int axis = 0; axis < 3; axis++) {
      v[THREAD_IN_GRID][axis] = at[axis] * grid.per_group[axis] + thread[axis];
      v[THREAD_IN_GROUP][axis] = thread[axis];
      v[GROUP_IN_GRID][axis] = at[axis];
      v[THREADS_PER_GROUP][axis] = size[axis];
      v[GROUPS_PER_GRID][axis] = grid.groups[axis];
      v[THREADS_PER_GRID][axis] = grid.threads[axis];
      v[DISPATCHED_THREADS_PER_GROUP][axis] = grid.per_group[axis];
    }
    v[THREAD_INDEX][0] = i;
    v[LANE][0] = i % kLanes;
    v[SIMDGROUP_INDEX][0] = i / kLanes;
    v[SIMDGROUP_SIZE][0] = kLanes;
    v[SIMDGROUPS_PER_GROUP][0] = (total + kLanes - 1) / kLanes;
  }
}

// Threadgroups at the far edges are smaller, as dispatchThreads has it
static void run_group_at(const Grid& grid, uint32_t number) {
  const uint32_t at[3] = {number % grid.groups[0], number / grid.groups[0] % grid.groups[1],
                          number / grid.groups[0] / grid.groups[1]};
  uint32_t size[3];
  for (int axis = 0; axis < 3; axis++)
    size[axis] = std::min(grid.per_group[axis], grid.threads[axis] - at[axis] * grid.per_group[axis]);
  uint32_t total = size[0] * size[1] * size[2];
  set_positions(grid, at, size, total);
  g.group = number;
  g.result->threadgroups++;
  run_group(total);
}

static void run_grid(const Grid& grid) {
  uint32_t total = grid.groups[0] * grid.groups[1] * grid.groups[2];
  std::vector<uint32_t> order(total);
  for (uint32_t i = 0; i < total; i++) order[i] = i;
  if (g.options.schedule == REVERSE) std::reverse(order.begin(), order.end());
  if (g.options.schedule == RANDOM) {
    for (uint32_t i = total; i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
  }
  for (uint32_t number : order) {
    run_group_at(grid, number);
    if (g.stopped) return;
  }
}

// ---- the kernel library --------------------------------------------------------------------------------------------
static int widen_code(dl_phdr_info* info, size_t, void* base) {
  if ((char*)info->dlpi_addr != base) return 0;
  g.code_begin = (char*)base;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD) g.code_end = std::max(g.code_end, (char*)base + segment.p_vaddr + segment.p_memsz);
  }
  return 1;
}

static void find_code(Entry entry) {
  Dl_info info;
  g.code_begin = g.code_end = nullptr;
  if (dladdr((void*)entry, &info)) dl_iterate_phdr(widen_code, info.dli_fbase);
}

static void begin(Entry entry, const Options* options, Result* result) {
  g.entry = entry;
  g.options = *options;
  g.result = result;
  g.stopped = false;
  g.random_state = 0x9E3779B97F4A7C15ull ^ ((uint64_t)options->seed << 20) ^ 1;
  g.epoch = {0, 0};
  g.current = 0;
  g.last_region = nullptr;
  memset((void*)result, 0, sizeof *result);
  find_code(entry);
  allocate_fibers();
  if (options->private_bounds) reset_private_memory();
}

}  // namespace runtime

using namespace runtime;

extern "C" void metal_emulator_dispatch(Entry entry, BufferIn* buffers, uint32_t buffer_count,
                                        const PointerIn* pointers, uint32_t pointer_count,
                                        const uint64_t* argument_bytes, uint32_t argument_count,
                                        const uint32_t* threads, const uint32_t* per_group, const Options* options,
                                        Result* result) {
  begin(entry, options, result);
  for (uint32_t i = 0; i < buffer_count; i++) g.buffers.push_back(new_buffer(buffers[i]));
  std::vector<void*> addresses(pointer_count, nullptr);
  for (uint32_t i = 0; i < pointer_count; i++) {
    if (pointers[i].buffer >= 0) addresses[i] = g.buffers[pointers[i].buffer]->begin + pointers[i].offset;
  }
  g.argument_bytes.assign(argument_bytes, argument_bytes + argument_count);
  g.argument_memory.assign(argument_count, nullptr);
  for (Fiber& f : g.fibers) {
    f.arguments.buffers = addresses.data();
    f.arguments.threadgroup_memory = g.argument_memory.data();
  }
  Grid grid;
  for (int axis = 0; axis < 3; axis++) {
    grid.threads[axis] = threads[axis];
    grid.per_group[axis] = per_group[axis];
    grid.groups[axis] = (threads[axis] + per_group[axis] - 1) / per_group[axis];
  }
  const unsigned control = _mm_getcsr();
  constexpr unsigned kFlushToZero = 0x8040;
  if (options->flush_denormals) _mm_setcsr(control | kFlushToZero);
  catch_traps();
  run_grid(grid);
  release_traps();
  _mm_setcsr(control);
  free_variables();
  for (uint32_t i = 0; i < buffer_count; i++) finish_buffer(g.buffers[i], buffers[i]);
  g.buffers.clear();
}

// For exchange.py to compare with its own
extern "C" void metal_emulator_structure_bytes(uint32_t* bytes) {
  const size_t sizes[] = {sizeof(BufferIn), sizeof(PointerIn), sizeof(Options),
                          sizeof(FaultOut), sizeof(EventOut),  sizeof(Result)};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) bytes[i] = (uint32_t)sizes[i];
}

// Events are counted by lane, so that the host can tell whether all lanes of each simdgroup saw the same
extern "C" void metal_emulator_count(const char* event) {
  Result& r = *g.result;
  uint32_t i = 0;
  while (i < r.event_count && strcmp(r.events[i].name, event) != 0) i++;
  if (i == kMaxEvents) {
    r.events_lost++;
    return;
  }
  if (i == r.event_count) {
    snprintf(r.events[i].name, sizeof r.events[i].name, "%s", event);
    r.event_count++;
  }
  r.events[i].count[current_fiber().lane]++;
}

// clang calls this to round a float to bfloat on processors without the instruction: to nearest, ties to even
extern "C" __bf16 __truncsfbf2(float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  uint32_t rounded = nan ? bits | 0x400000 : bits + 0x7FFF + (bits >> 16 & 1);
  return __builtin_bit_cast(__bf16, (uint16_t)(rounded >> 16));
}
