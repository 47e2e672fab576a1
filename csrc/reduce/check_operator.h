// The one error for an operator that a type does not have.
#pragma once

#include <string>

#include "csrc/base/error.h"
#include "csrc/base/types.h"

namespace ringred {

// Throws a usage error where `op` is not defined for `dtype`.
inline void check_operator(DType dtype, Op op) {
  if (is_defined(op, dtype)) return;
  fail_usage("The operator must be defined for the dtype: " + std::string(name_of(op)) + " is not for " +
             std::string(info(dtype).name) +
             " (booleans have no average, complex numbers have no order). Use Sum, or convert the array.");
}

}  // namespace ringred
