// Memory that is given back with its owner: of the device, and of the host while a device may copy from and to it.
#pragma once

#include <cstddef>
#include <utility>

#include "csrc/cuda/device.h"

namespace ringred::cuda {

// An allocation of cuMemAlloc. To be freed when no work and no peer uses it.
class DeviceMemory {
 public:
  DeviceMemory(const Gpu& gpu, std::size_t bytes);
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() { free(); }

  DevicePointer address() const { return address_; }
  void free();
  void abandon() { address_ = 0; }  // where somebody may still use it: it goes with the process

 private:
  const Gpu gpu_;
  DevicePointer address_ = 0;
};

// Host memory that is pinned and that the device sees. The memory itself stays the caller's.
class RegisteredMemory {
 public:
  RegisteredMemory(const Gpu& gpu, void* start, std::size_t bytes);
  RegisteredMemory(RegisteredMemory&& other) noexcept
      : gpu_(other.gpu_), start_(std::exchange(other.start_, nullptr)), device_(other.device_) {}
  RegisteredMemory& operator=(RegisteredMemory&&) = delete;
  ~RegisteredMemory();

  // What the device calls an address in it.
  DevicePointer seen_by_device(const void* address) const {
    return device_ + static_cast<DevicePointer>(static_cast<const std::byte*>(address) - start_);
  }
  void abandon() { start_ = nullptr; }

 private:
  Gpu gpu_;
  std::byte* start_;
  DevicePointer device_ = 0;
};

}  // namespace ringred::cuda
