#include "csrc/reduce/instruction_sets.h"

namespace ringred {
namespace {

// The builtins ask the operating system too (XCR0), not only the processor.
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2");
}
bool always() {
  return true;
}

constexpr InstructionSet sets[] = {
    {"avx512", has_avx512, avx512::kernel_table},
    {"avx2", has_avx2, avx2::kernel_table},
    {"baseline", always, baseline::kernel_table},
};

}  // namespace

std::span<const InstructionSet> instruction_sets() {
  return sets;
}

}  // namespace ringred
