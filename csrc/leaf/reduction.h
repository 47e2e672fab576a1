// One allreduce on one rank: what a leaf needs to know, bound once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/base/function_ref.h"
#include "csrc/reduce/reduce.h"

namespace ringred {

struct Reduction {
  const std::byte* input;
  std::byte* output;  // may be the input
  std::size_t count;
  std::size_t element_size;
  ReduceKernel kernel;
  std::int64_t divisor;
  std::uint64_t location;  // of the buffer in this rank's segment plus one, if input and output are one; else 0
  std::uint64_t fingerprint;

  std::size_t bytes() const { return count * element_size; }
};

// Completes "rank 0 waits for rank 2 ..."; called in slow paths only.
using Sentence = FunctionRef<std::string()>;

}  // namespace ringred
