#include <numeric>

#include "benchmarks/gpu/values.h"
#include "csrc/cuda/launch.h"

namespace ringred::cuda {
namespace {

// Each thread tells how many it has found.
__global__ void find_differences(const unsigned* left, const unsigned* right, std::size_t words, const char* left_rest,
                                 const char* right_rest, unsigned rest, unsigned* found) {
  const std::size_t thread = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x;
  unsigned different = thread < rest && left_rest[thread] != right_rest[thread] ? 1 : 0;
  for (std::size_t i = thread; i < words; i += gridDim.x * std::size_t{blockDim.x})
    different += left[i] != right[i] ? 1 : 0;
  found[thread] = different;
}

}  // namespace

std::uint64_t differences(const void* left, const void* right, std::size_t bytes, cudaStream_t stream) {
  const std::size_t words = bytes / 4;
  const Grid grid = strided_grid(words + 1);
  const DeviceTable<unsigned> found(std::size_t{grid.blocks} * grid.threads);
  launch("find_differences", find_differences, grid, stream, static_cast<const unsigned*>(left),
         static_cast<const unsigned*>(right), words, static_cast<const char*>(left) + words * 4,
         static_cast<const char*>(right) + words * 4, static_cast<unsigned>(bytes % 4), found.data());
  check(cudaStreamSynchronize(stream), "compare two arrays");
  std::vector<unsigned> host(found.size());
  check(cudaMemcpy(host.data(), found.data(), host.size() * sizeof(unsigned), cudaMemcpyDefault),
        "read the differences of two arrays");
  return std::accumulate(host.begin(), host.end(), std::uint64_t{0});
}

}  // namespace ringred::cuda
