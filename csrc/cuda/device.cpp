#include "csrc/cuda/device.h"

#include <array>
#include <cstdio>

#include "csrc/base/error.h"

namespace ringred::cuda {
namespace {

int count_devices(const Driver& driver) {
  int count = 0;
  driver.check(driver->device_get_count(&count), "count the devices");
  return count;
}

int attribute(const Driver& driver, Device device, DeviceAttribute which) {
  int value = 0;
  driver.check(driver->device_get_attribute(&value, which, device), "read an attribute of a device");
  return value;
}

// What holds where a driver is older than the attribute is `unknown`.
bool has(const Driver& driver, Device device, DeviceAttribute which, bool unknown = false) {
  int value = 0;
  return driver->device_get_attribute(&value, which, device) == Result::success ? value != 0 : unknown;
}

std::string capability_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

}  // namespace

std::string DeviceFacts::words() const {
  return "device " + std::to_string(ordinal) + " (" + name + ", compute capability " + capability_text(capability) +
         ")";
}

DeviceFacts device_facts(const Driver& driver, int ordinal) {
  const int count = count_devices(driver);
  if (ordinal < 0 || ordinal >= count)
    fail_usage("A device must be from 0 to " + std::to_string(count - 1) + " in this process: it is " +
               std::to_string(ordinal) + ". Look at CUDA_VISIBLE_DEVICES.");
  DeviceFacts facts;
  facts.ordinal = ordinal;
  driver.check(driver->device_get(&facts.device, ordinal), "find a device");
  std::array<char, 128> name{};
  driver.check(driver->device_get_name(name.data(), name.size() - 1, facts.device), "read the name of a device");
  facts.name = name.data();
  driver.check(driver->device_get_uuid(&facts.uuid, facts.device), "read the UUID of a device");
  facts.capability = attribute(driver, facts.device, DeviceAttribute::compute_capability_major) * 10 +
                     attribute(driver, facts.device, DeviceAttribute::compute_capability_minor);
  if (facts.capability < oldest_capability)
    fail_system("ringred's kernels need compute capability " + capability_text(oldest_capability) +
                " or newer: this is " + facts.words() + ". Use another device, or CPU tensors.");
  facts.has_legacy_ipc = has(driver, facts.device, DeviceAttribute::ipc_supported, true);
  facts.has_posix_descriptors = has(driver, facts.device, DeviceAttribute::virtual_memory_supported) &&
                                has(driver, facts.device, DeviceAttribute::posix_descriptor_supported);
  facts.can_register_host_memory = has(driver, facts.device, DeviceAttribute::host_register_supported);
  return facts;
}

std::optional<int> ordinal_of(const Driver& driver, const Uuid& uuid) {
  const int count = count_devices(driver);
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    Device device = -1;
    Uuid found{};
    driver.check(driver->device_get(&device, ordinal), "find a device");
    driver.check(driver->device_get_uuid(&found, device), "read the UUID of a device");
    if (found == uuid) return ordinal;
  }
  return std::nullopt;
}

std::string words(const Uuid& uuid) {
  std::string text = "GPU-";
  for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
    char digits[4];
    std::snprintf(digits, sizeof digits, "%02x", unsigned{uuid.bytes[i]});
    text += (i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "") + std::string(digits);
  }
  return text;
}

PrimaryContext::PrimaryContext(DriverPointer driver, Device device) : driver_(std::move(driver)), device_(device) {
  driver_->check((*driver_)->primary_context_retain(&context_, device_), "make the context of a device");
}

Gpu Gpu::open(DriverPointer driver, int ordinal) {
  Gpu gpu{std::move(driver), {}, nullptr};
  gpu.facts = device_facts(*gpu.driver, ordinal);
  gpu.context = std::make_shared<const PrimaryContext>(gpu.driver, gpu.facts.device);
  return gpu;
}

CurrentContext::CurrentContext(const Gpu& gpu) : driver_(*gpu.driver) {
  driver_.check(driver_->context_push(gpu.context->get()), "use the context of a device");
}

CurrentContext::~CurrentContext() {
  Context popped = nullptr;
  driver_->context_pop(&popped);
}

}  // namespace ringred::cuda
