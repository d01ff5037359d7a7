// Fibers: stacks, switching, the ready queue, one threadgroup from start to end
#include <sys/mman.h>
#include <algorithm>
#include "runtime.h"

// Saves the callee-saved registers on the current stack, stores its top in *save and goes on with the stack `load`
extern "C" void metal_emulator_switch(void** save, void* load);
asm(R"(.text
.globl metal_emulator_switch
.hidden metal_emulator_switch
.type metal_emulator_switch,@function
metal_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace runtime {

Dispatch g;

// Ready fibers: a queue, or with the greedy schedule a stack, so that one simdgroup runs as far ahead as it can
class ReadyList {
 public:
  bool empty() const { return head_ == tail_; }
  void clear() { head_ = tail_ = 0; }
  void push(uint32_t fiber) { ring_[tail_++ % kSize] = fiber; }
  uint32_t pop(bool newest) { return newest ? ring_[--tail_ % kSize] : ring_[head_++ % kSize]; }

 private:
  static constexpr uint32_t kSize = 2 * kMaxThreads;
  uint32_t ring_[kSize];
  uint32_t head_ = 0;
  uint32_t tail_ = 0;
};
static ReadyList ready;

uint32_t random_below(uint32_t n) {
  g.random_state ^= g.random_state << 13;
  g.random_state ^= g.random_state >> 7;
  g.random_state ^= g.random_state << 17;
  return (uint32_t)(g.random_state >> 11) % n;
}

void release(uint32_t* fibers, uint32_t n) {
  if (g.options.schedule == REVERSE) std::reverse(fibers, fibers + n);
  if (g.options.schedule == RANDOM) {
    for (uint32_t i = n; i > 1; i--) std::swap(fibers[i - 1], fibers[random_below(i)]);
  }
  for (uint32_t i = 0; i < n; i++) {
    g.fibers[fibers[i]].state = READY;
    ready.push(fibers[i]);
  }
}

// The current fiber has to wait: run another one, or end the group
void block() {
  Fiber& me = current_fiber();
  if (!g.stopped && ready.empty() && g.alive) {
    report_deadlock();
    stop();
  }
  if (g.stopped || ready.empty()) {
    metal_emulator_switch(&me.stack_pointer, g.main_stack_pointer);
    return;
  }
  uint32_t next = ready.pop(g.options.schedule == GREEDY);
  if (next == me.index) return;
  g.current = next;
  metal_emulator_switch(&me.stack_pointer, g.fibers[next].stack_pointer);
}

// After stop(): the current fiber never runs again
void leave() {
  metal_emulator_switch(&current_fiber().stack_pointer, g.main_stack_pointer);
  __builtin_trap();
}

static void fiber_main() {
  g.entry(&current_fiber().arguments);
  Fiber& f = current_fiber();
  f.state = RETURNED;
  g.alive--;
  thread_returned(f.simdgroup);
  block();
  __builtin_trap();
}

// One mapping for all stacks, each with an unmapped page below it
void allocate_fibers() {
  if (g.stacks) return;
  g.stacks = (char*)mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  g.fibers.resize(kMaxThreads);
  g.simdgroups.resize(kMaxThreads / kLanes);
  for (uint32_t i = 0; i < kMaxThreads; i++) {
    g.fibers[i].stack = g.stacks + i * kStackBytes;
    mprotect(g.fibers[i].stack, kPage, PROT_NONE);
  }
}

static void prepare_fiber(uint32_t i) {
  Fiber& f = g.fibers[i];
  f.index = i;
  f.lane = i % kLanes;
  f.simdgroup = i / kLanes;
  f.simd_epoch = {0, 0};
  void** top = (void**)(f.stack + kStackBytes - 64);
  *--top = nullptr;  // return address of fiber_main: none
  *--top = (void*)fiber_main;
  for (int callee_saved = 0; callee_saved < 6; callee_saved++) *--top = nullptr;
  f.stack_pointer = top;
}

static void prepare_simdgroups(uint32_t threads) {
  for (uint32_t s = 0; s * kLanes < threads; s++) {
    Simdgroup& simd = g.simdgroups[s];
    simd.alive = std::min(kLanes, threads - s * kLanes);
    simd.waiting = 0;
    simd.turn = 0;
  }
}

void run_group(uint32_t threads) {
  g.threads = threads;
  g.alive = threads;
  g.at_barrier = 0;
  g.barrier_flags = ~0;
  g.epoch.device++;
  g.epoch.threadgroup++;
  ready.clear();
  prepare_simdgroups(threads);
  static uint32_t all[kMaxThreads];
  for (uint32_t i = 0; i < threads; i++) {
    prepare_fiber(i);
    all[i] = i;
  }
  g.current = 0;
  begin_group_memory();
  if (g.stopped) return;
  release(all, threads);
  g.current = ready.pop(g.options.schedule == GREEDY);
  metal_emulator_switch(&g.main_stack_pointer, current_fiber().stack_pointer);
}

}  // namespace runtime
