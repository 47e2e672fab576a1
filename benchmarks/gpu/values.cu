#include <cuda/atomic>

#include "benchmarks/gpu/values.h"
#include "csrc/cuda/launch.h"

namespace ringred::cuda {
namespace {

__global__ void count_differences(const unsigned* left, const unsigned* right, std::size_t words, const char* left_rest,
                                  const char* right_rest, unsigned rest, unsigned long long* count) {
  const std::size_t thread = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x;
  unsigned long long different = 0;
  for (std::size_t i = thread; i < words; i += gridDim.x * std::size_t{blockDim.x})
    different += left[i] != right[i] ? 1 : 0;
  if (thread < rest) different += left_rest[thread] != right_rest[thread] ? 1 : 0;
  if (different > 0) {
    const ::cuda::atomic_ref<unsigned long long, ::cuda::thread_scope_device> total(*count);
    total.fetch_add(different, ::cuda::memory_order_relaxed);
  }
}

}  // namespace

std::uint64_t differences(const void* left, const void* right, std::size_t bytes, cudaStream_t stream) {
  const unsigned long long zero = 0;
  const DeviceTable<unsigned long long> count(std::span<const unsigned long long>(&zero, 1));
  const std::size_t words = bytes / 4;
  launch("count_differences", count_differences, strided_grid(words + 1), stream, static_cast<const unsigned*>(left),
         static_cast<const unsigned*>(right), words, static_cast<const char*>(left) + words * 4,
         static_cast<const char*>(right) + words * 4, static_cast<unsigned>(bytes % 4), count.data());
  check(cudaStreamSynchronize(stream), "compare two arrays");
  unsigned long long found = 0;
  check(cudaMemcpy(&found, count.data(), sizeof found, cudaMemcpyDefault), "read a number of differences");
  return found;
}

}  // namespace ringred::cuda
