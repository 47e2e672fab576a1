// Errors of the CUDA runtime as ringred's: what was to be done, what CUDA answered, and what helps.
//
// Invariant: an answer other than cudaSuccess is never dropped.
#pragma once

#include <cuda_runtime.h>

#include <string_view>

namespace ringred::cuda {

// `action` follows on "CUDA could not": "allocate 64 bytes". Throws a system error unless `answer` is cudaSuccess.
void check(cudaError_t answer, std::string_view action);

}  // namespace ringred::cuda
