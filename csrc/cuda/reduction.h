// What an allreduce does with the elements of all ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "csrc/algorithms/algorithms.h"
#include "csrc/base/types.h"

namespace ringred::cuda {

// output = postscale * op over all ranks of (prescale * input).
struct Reduction {
  std::size_t count = 0;
  DType dtype = DType::f32;  // float16, bfloat16, float32, float64, int32, int64
  Op op = Op::sum;
  double prescale = 1, postscale = 1;       // 1 for integers
  std::optional<Algorithm> algorithm = {};  // one that is prepared; nothing: by size
  std::uint64_t tag = 0;                    // what the caller names it, in 48 bits: all ranks alike
};

}  // namespace ringred::cuda
