// Which kernel objects were built into this library and whether the processor can run each, fastest first.
// CMake compiles one of instruction_sets_x86.cpp and instruction_sets_generic.cpp.
#pragma once

#include <span>
#include <string_view>

#include "csrc/reduce/kernels.h"

namespace ringred {

struct InstructionSet {
  std::string_view name;
  bool (*runs_here)();
  const KernelTable& (*table)();
};

std::span<const InstructionSet> instruction_sets();

}  // namespace ringred
