// What tests of kernels share: arrays in device memory, and the skip where there is no device.
//
// Invariant: memory before and after an array is filled with a pattern, and read() checks that it still is.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "csrc/cuda/check.h"
#include "tests/check.h"

namespace ringred::cuda {

// The exit code that ctest takes for a skipped test.
inline constexpr int skipped = 77;

inline const bool has_device = [] {
  int count = 0;
  const cudaError_t answer = cudaGetDeviceCount(&count);
  if (answer == cudaSuccess && count > 0) return true;
  std::printf("skipped: there is no GPU that CUDA can use here (%s)\n", cudaGetErrorString(answer));
  std::fflush(stdout);
  std::_Exit(skipped);
}();

// An array at `offset` bytes from an address that is a multiple of 256.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count, std::size_t offset = 0) : count_(count), before_(margin + offset) {
    check(cudaMalloc(&memory_, bytes()), "allocate an array of a test");
    check(cudaMemset(memory_, pattern, bytes()), "fill an array of a test");
    settle();
  }
  explicit DeviceArray(std::span<const T> values, std::size_t offset = 0) : DeviceArray(values.size(), offset) {
    write(values);
  }
  explicit DeviceArray(const std::vector<T>& values, std::size_t offset = 0)
      : DeviceArray(std::span<const T>(values), offset) {}
  DeviceArray(DeviceArray&& other) noexcept
      : count_(other.count_), before_(other.before_), memory_(std::exchange(other.memory_, nullptr)) {}
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() { static_cast<void>(cudaFree(memory_)); }

  T* data() const { return reinterpret_cast<T*>(memory_ + before_); }
  std::size_t size() const { return count_; }

  void write(std::span<const T> values) {
    check(cudaMemcpy(data(), values.data(), values.size_bytes(), cudaMemcpyDefault), "write an array of a test");
    settle();
  }
  std::vector<T> read() const {
    std::vector<unsigned char> all(bytes());
    check(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDefault), "read an array of a test");
    const auto untouched = [](unsigned char byte) { return byte == pattern; };
    const auto start = all.begin() + static_cast<std::ptrdiff_t>(before_);
    const auto end = start + static_cast<std::ptrdiff_t>(count_ * sizeof(T));
    CHECK(std::all_of(all.begin(), start, untouched));
    CHECK(std::all_of(end, all.end(), untouched));
    std::vector<T> values(count_);
    if (count_ > 0) std::memcpy(values.data(), &*start, count_ * sizeof(T));
    return values;
  }

 private:
  static constexpr std::size_t margin = 256;
  static constexpr unsigned char pattern = 0xa5;

  // The default stream may not have ended what it was asked for, and other streams of a test do not wait for it.
  static void settle() { check(cudaStreamSynchronize(nullptr), "end what fills an array of a test"); }

  std::size_t bytes() const { return before_ + count_ * sizeof(T) + margin; }

  std::size_t count_, before_;
  unsigned char* memory_ = nullptr;
};

// Waits for all that was launched; a kernel that failed is an error here.
inline void finish() {
  check(cudaDeviceSynchronize(), "end the kernels of a test");
}

}  // namespace ringred::cuda
