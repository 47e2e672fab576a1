// A table in device memory, for kernels to read: freed with its owner.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "csrc/cuda/check.h"

namespace ringred::cuda {

// `count` elements on the device that was current when they were allocated; null if there are none.
template <class T>
class DeviceTable {
 public:
  explicit DeviceTable(std::size_t count) : count_(count) {
    if (count > 0)
      check(cudaMalloc(&data_, count * sizeof(T)), "allocate " + std::to_string(count * sizeof(T)) + " bytes");
  }
  // Returns when the values are there.
  explicit DeviceTable(std::span<const T> values) : DeviceTable(values.size()) {
    check(cudaMemcpy(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice), "copy a table to the device");
    // From pageable memory cudaMemcpy may return earlier, and streams that do not wait for the default one would not.
    check(cudaStreamSynchronize(nullptr), "copy a table to the device");
  }
  DeviceTable(DeviceTable&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceTable& operator=(DeviceTable&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  // Waits for kernels that may still use it, as cudaFree does. A destructor has nobody to tell of an error.
  ~DeviceTable() { static_cast<void>(cudaFree(data_)); }

  T* data() const { return data_; }
  std::size_t size() const { return count_; }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

}  // namespace ringred::cuda
