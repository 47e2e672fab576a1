// Errors of the CUDA runtime as ringred's: what was to be done, what CUDA answered, and what helps.
//
// Invariant: an answer other than cudaSuccess is never dropped.
#pragma once

#include <cuda_runtime.h>

#include <string_view>

#include "csrc/base/types.h"

namespace ringred::cuda {

// `action` follows on "CUDA could not": "allocate 64 bytes". Throws a system error unless `answer` is cudaSuccess.
void check(cudaError_t answer, std::string_view action);

// Throws a usage error unless the array is there and at a multiple of the size of an element; `name` and `number` say
// which array of a call it is.
void check_array(const void* array, DType dtype, std::string_view name, int number);

}  // namespace ringred::cuda
