#include "csrc/cuda/device_memory.h"

#include "csrc/base/error.h"
#include "csrc/cuda/capture.h"
#include "csrc/memory/limits.h"

namespace ringred::cuda {

DeviceMemory::DeviceMemory(const Gpu& gpu, std::size_t bytes) : gpu_(gpu) {
  const CurrentContext current(gpu_);
  const RelaxedCapture relaxed(*gpu_.driver);
  const Result result = (*gpu_.driver)->memory_allocate(&address_, bytes);
  if (result != Result::success) gpu_.driver->fail(result, "allocate " + in_words(bytes) + " on " + gpu_.facts.words());
}

// What fails here is not said: it fails after an earlier error, which was.
void DeviceMemory::free() {
  if (address_ == 0) return;
  const Driver& driver = *gpu_.driver;
  const RelaxedCapture relaxed(driver);
  const bool pushed = driver->context_push(gpu_.context->get()) == Result::success;
  driver->memory_free(std::exchange(address_, 0));
  Context popped = nullptr;
  if (pushed) driver->context_pop(&popped);
}

RegisteredMemory::RegisteredMemory(const Gpu& gpu, void* start, std::size_t bytes)
    : gpu_(gpu), start_(static_cast<std::byte*>(start)) {
  const Driver& driver = *gpu_.driver;
  const CurrentContext current(gpu_);
  const RelaxedCapture relaxed(driver);
  if (!gpu_.facts.can_register_host_memory)
    fail_system("Staging needs host memory that the device can use, which " + gpu_.facts.words() +
                " does not support. Use CPU tensors.");
  Result result = driver->host_register(start, bytes, host_register_portable | host_register_device_map);
  if (result != Result::success)
    fail_system("Staging needs " + in_words(bytes) + " of pinned host memory, and the system refused: " +
                driver.words(result) + ". Free memory, or use fewer ranks; in a container, raise its memory limit.");
  result = driver->host_get_device_pointer(&device_, start, 0);
  if (result == Result::success) return;
  driver->host_unregister(start);
  driver.fail(result, "show host memory to the device");
}

RegisteredMemory::~RegisteredMemory() {
  if (start_ == nullptr) return;
  const Driver& driver = *gpu_.driver;
  const RelaxedCapture relaxed(driver);
  const bool pushed = driver->context_push(gpu_.context->get()) == Result::success;
  driver->host_unregister(start_);
  Context popped = nullptr;
  if (pushed) driver->context_pop(&popped);
}

}  // namespace ringred::cuda
