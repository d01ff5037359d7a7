// The strict check executes nothing: declarations only
#pragma once

namespace metal_emulator {

unsigned lane();
template <class T>
T shuffle(T v, unsigned source_lane, metal_emulator_site site);
template <class OPERATION, class T>
T reduce(T v, metal_emulator_site site);
template <class OPERATION, class T>
T prefix(T v, T identity, bool inclusive, metal_emulator_site site);
ulong ballot(bool vote, metal_emulator_site site);
ulong active_lanes(metal_emulator_site site);
void matrix_access(metal_emulator_site site);
void threadgroup_barrier(int flags, metal_emulator_site site);
void simdgroup_barrier(int flags, metal_emulator_site site);
void matrix_multiply(thread float* d, const thread float* a, const thread float* b, const thread float* c,
                     metal_emulator_site site);
int tensor_element(int role, int rows, int columns, int capacity, int slot);
int tensor_row(int rows, int columns, int capacity, int slot);
int tensor_row_slot(int rows, int columns, int capacity, int row);
bool tensor_converts(int rows, int columns);
void tensor_misuse(const constant char* what);
template <class OP, class A, class B, class C>
void tensor_multiply(const thread A& left, const thread B& right, thread C& destination, metal_emulator_site site);
template <class S, class C>
void tensor_convert(const thread S& from, thread C& to, metal_emulator_site site);
template <class S, class R>
void tensor_reduce_rows(const thread S& from, thread R& to, int operation, float identity, metal_emulator_site site);
template <class P>
auto atomic_read(P p) -> metal_emulator::bare<decltype(*p)>;
template <class P, class CHANGE>
auto atomic_change(P p, CHANGE change, bool reads = true) -> metal_emulator::bare<decltype(*p)>;

}  // namespace metal_emulator
