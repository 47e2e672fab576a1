// Ranks that launch for themselves, as the processes of a job do: a thread and a stream for each.
//
// Invariant: on a device, all kernels of such a test fit it at the same time and have been launched once before, since
// a kernel that is still to be loaded may wait for one that spins.
#pragma once

#include <cuda_runtime.h>

#include <exception>
#include <thread>
#include <vector>

#include "csrc/cuda/check.h"
#include "tests/check.h"

namespace ringred::cuda {

// body(rank, stream), then waits for the stream, then result(rank): on a thread of the rank.
template <class Body, class Result>
void side_by_side(int size, const Body& body, const Result& result) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      try {
        cudaStream_t stream = nullptr;
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "create a stream of a test");
        body(rank, stream);
        check(cudaStreamSynchronize(stream), "end the kernel of a rank");
        result(rank);
        check(cudaStreamDestroy(stream), "destroy a stream of a test");
      } catch (const std::exception& error) {
        ringred::check::report("rank", rank, error.what());
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace ringred::cuda
