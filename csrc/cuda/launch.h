// Launching a kernel: how many blocks, on which stream, and the error if CUDA refuses. Kernels are launched nowhere
// else.
//
// Invariant: a launch never waits for the device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "csrc/cuda/check.h"

namespace ringred::cuda {

struct Grid {
  unsigned blocks, threads;
  std::size_t shared_bytes = 0;  // dynamic shared memory of a block
};

template <class... Parameters, class... Arguments>
void launch(std::string_view name, void (*kernel)(Parameters...), Grid grid, cudaStream_t stream,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
        "launch the kernel " + std::string(name));
}

// All blocks run at the same time, so that they may wait for one another.
template <class... Parameters, class... Arguments>
void launch_cooperative(std::string_view name, void (*kernel)(Parameters...), Grid grid, cudaStream_t stream,
                        Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
        "launch the cooperative kernel " + std::string(name));
}

inline unsigned multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "tell which device is current");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "tell the number of multiprocessors");
  return static_cast<unsigned>(count);
}

// `seconds` in ticks of clock64, in which kernels count their patience.
inline long long clock_ticks(double seconds) {
  int device = 0, kilohertz = 0;
  check(cudaGetDevice(&device), "tell which device is current");
  check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device), "tell the clock's rate");
  return static_cast<long long>(seconds * kilohertz * 1000.0);
}

// A grid for threads that take every gridDim * blockDim-th item: no more blocks than fit the device.
inline Grid strided_grid(std::size_t items) {
  constexpr unsigned threads = 256, blocks_of_a_multiprocessor = 8;  // its 2048 threads
  const std::size_t needed = (items + threads - 1) / threads;
  const std::size_t most = multiprocessors() * blocks_of_a_multiprocessor;
  return {static_cast<unsigned>(needed < most ? needed : most), threads};
}

// The number of blocks of this kernel that the current device runs at the same time.
template <class Kernel>
unsigned resident_blocks(Kernel* kernel, unsigned threads, std::size_t shared_bytes = 0) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(threads), shared_bytes),
        "tell how many blocks of a kernel fit a multiprocessor");
  return static_cast<unsigned>(blocks) * multiprocessors();
}

}  // namespace ringred::cuda
