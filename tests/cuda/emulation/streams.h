// Streams of the emulation: work happens when it is asked for, or goes into the graph that the stream captures.
#pragma once

#include <functional>
#include <vector>

#include "tests/cuda/emulation/cuda_runtime.h"

namespace ringred::emulation {

// Remembers an error for cudaGetLastError, and returns it.
cudaError_t answer(cudaError_t error);

using Work = std::function<cudaError_t()>;
cudaError_t enqueue(cudaStream_t stream, Work work);

// The error, and the end of this thread's captures, if a call that no stream orders comes within one.
cudaError_t outside_of_captures();

}  // namespace ringred::emulation
