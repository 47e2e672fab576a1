#include "csrc/reduce/update.h"

#include <string>

#include "csrc/base/error.h"
#include "csrc/reduce/instruction_sets.h"

namespace ringred {
namespace {

// The row of a dtype in the tables of the kernels.
std::size_t row_of(DType dtype) {
  if (dtype == DType::f32) return 0;
  if (dtype == DType::f64) return 1;
  fail_usage("Norms and fused optimizer steps take float32 or float64: the dtype is " + std::string(info(dtype).name) +
             ". Convert the parameters, or step with torch's optimizer.");
}

}  // namespace

UpdateKernel update_kernel(const InstructionSet& set, DType dtype, Rule rule) {
  return set.table().update[row_of(dtype)][static_cast<std::size_t>(rule)];
}

NormKernel norm_kernel(const InstructionSet& set, DType dtype) {
  return set.table().norm[row_of(dtype)];
}

}  // namespace ringred
