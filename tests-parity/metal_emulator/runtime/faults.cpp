// The list of findings: one per kind and place in the code, at most kMaxFaults
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include "runtime.h"

namespace runtime {

static uint64_t code_offset(void* code) {
  char* p = (char*)code;
  return in_code(p) ? (uint64_t)(p - g.code_begin) : 0;
}

static FaultOut* new_fault(FaultKind kind, uint64_t code) {
  Result& r = *g.result;
  for (uint32_t i = 0; i < r.fault_count; i++) {
    if (r.faults[i].kind == kind && r.faults[i].code[0] == code) return nullptr;
  }
  if (r.fault_count == kMaxFaults) return nullptr;
  FaultOut* f = &r.faults[r.fault_count++];
  const metal_emulator_arguments& a = current_fiber().arguments;
  f->kind = kind;
  f->code[0] = code;
  f->code[1] = 0;
  memcpy(f->group, a.position[GROUP_IN_GRID], sizeof f->group);
  memcpy(f->thread, a.position[THREAD_IN_GROUP], sizeof f->thread);
  return f;
}

void report(FaultKind kind, void* code, const char* format, ...) {
  FaultOut* f = new_fault(kind, code_offset(code));
  if (!f) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(f->detail, sizeof f->detail, format, arguments);
  va_end(arguments);
}

void report_two(FaultKind kind, void* code, void* other_code, const char* format, ...) {
  FaultOut* f = new_fault(kind, code_offset(code));
  if (!f) return;
  f->code[1] = code_offset(other_code);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(f->detail, sizeof f->detail, format, arguments);
  va_end(arguments);
}

// No fiber runs after this: the dispatch ends when the current one gives up its turn
void stop() { g.stopped = true; }

}  // namespace runtime
