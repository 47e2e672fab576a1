// What the kernels are given, and whether they returned what the host's kernels return.
//
// Invariant: values are multiples of 1/1024 and less than 1 in magnitude, so that sums of a few of them are exact in
// fp32 in any order: every comparison is of bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/cuda/device_table.h"

namespace ringred::cuda {

inline std::vector<float> values(std::size_t count, unsigned seed) {
  std::vector<float> result(count);
  std::uint32_t state = 2654435761u * (seed + 1);
  for (float& value : result) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    value = (static_cast<float>(state % 2001) - 1000) / 1024;
  }
  return result;
}

template <class T>
DeviceTable<T> on_device(const std::vector<T>& host) {
  return DeviceTable<T>(std::span<const T>(host));
}

inline void copy_on_device(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy an array");
}

// The number of 4-byte words in which two arrays of the device differ, and a rest of bytes. Waits for the stream.
std::uint64_t differences(const void* left, const void* right, std::size_t bytes, cudaStream_t stream);

inline void check_equal(const void* result, const void* expected, std::size_t bytes, cudaStream_t stream,
                        const std::string& name) {
  const std::uint64_t different = differences(result, expected, bytes, stream);
  if (different != 0)
    fail_system("A kernel's result must have the bits that the host computes: of '" + name + "', " +
                std::to_string(different) + " words of " + std::to_string(bytes / 4) + " differ. Run 'make test-gpu'.");
}

}  // namespace ringred::cuda
