// The device of a rank: what it is, and its context.
//
// Devices are known to other ranks by their UUID: an ordinal depends on CUDA_VISIBLE_DEVICES, which may differ between
// ranks.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "csrc/cuda/driver.h"

namespace ringred::cuda {

// 8.0 (Ampere): the oldest that kernels are compiled for.
inline constexpr int oldest_capability = 80;

struct DeviceFacts {
  int ordinal = -1;
  Device device = -1;
  Uuid uuid{};
  std::string name;
  int capability = 0;                     // 10 times the major number and the minor one
  bool has_legacy_ipc = false;            // cuIpcGetMemHandle and its kin
  bool has_posix_descriptors = false;     // memory of cuMemCreate may travel as a descriptor
  bool can_register_host_memory = false;  // for staging

  std::string words() const;  // "device 0 (NVIDIA H100, compute capability 9.0)"
};

// Throws a usage error where there is no such device, a system error where its compute capability is too low.
DeviceFacts device_facts(const Driver& driver, int ordinal);

// The ordinal that a device has in this process; nothing where it is not visible.
std::optional<int> ordinal_of(const Driver& driver, const Uuid& uuid);

std::string words(const Uuid& uuid);  // "GPU-6f1a...", as nvidia-smi -L shows it

// Holds the device's primary context, which the CUDA runtime and torch use, too.
class PrimaryContext {
 public:
  PrimaryContext(DriverPointer driver, Device device);
  PrimaryContext(const PrimaryContext&) = delete;
  ~PrimaryContext() { (*driver_)->primary_context_release(device_); }

  Context get() const { return context_; }

 private:
  const DriverPointer driver_;
  const Device device_;
  Context context_ = nullptr;
};

// The driver, the device and its context: what everything here works with.
struct Gpu {
  DriverPointer driver;
  DeviceFacts facts;
  std::shared_ptr<const PrimaryContext> context;

  static Gpu open(DriverPointer driver, int ordinal);
};

// Makes a context the thread's current one for a scope.
class CurrentContext {
 public:
  explicit CurrentContext(const Gpu& gpu);
  CurrentContext(const CurrentContext&) = delete;
  ~CurrentContext();

 private:
  const Driver& driver_;
};

}  // namespace ringred::cuda
