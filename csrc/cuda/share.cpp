#include "csrc/cuda/share.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdio>

#include "csrc/base/error.h"
#include "csrc/base/mix.h"
#include "csrc/base/text.h"
#include "csrc/cuda/capture.h"

namespace ringred::cuda {
namespace {

// Attributes are of 1 to 8 bytes; each is read into a word that was zero before.
struct PointerFacts {
  std::uint64_t memory_type = 0, managed = 0, legacy_capable = 0, buffer_id = 0, handle_types = 0, pool = 0;
  std::uint64_t range_start = 0, range_size = 0, ordinal = 0;
};

PointerFacts facts_of(const Driver& driver, DevicePointer address) {
  PointerFacts facts;
  std::array attributes{PointerAttribute::memory_type,           PointerAttribute::is_managed,
                        PointerAttribute::is_legacy_ipc_capable, PointerAttribute::buffer_id,
                        PointerAttribute::memory_pool,           PointerAttribute::range_start,
                        PointerAttribute::allowed_handle_types,  PointerAttribute::range_size,
                        PointerAttribute::device_ordinal};
  std::array<void*, attributes.size()> values{&facts.memory_type,  &facts.managed,    &facts.legacy_capable,
                                              &facts.buffer_id,    &facts.pool,       &facts.range_start,
                                              &facts.handle_types, &facts.range_size, &facts.ordinal};
  driver.check(driver->pointer_get_attributes(attributes.size(), attributes.data(), values.data(), address),
               "read what a device address is");
  return facts;
}

std::string in_words(DevicePointer address, std::uint64_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%llu bytes at 0x%llx", static_cast<unsigned long long>(bytes),
                static_cast<unsigned long long>(address));
  return text;
}

void check_device(const Gpu& gpu, const PointerFacts& facts, DevicePointer address, std::uint64_t bytes) {
  if (facts.memory_type != static_cast<std::uint64_t>(MemoryType::device) && facts.managed == 0)
    fail_usage("A tensor on a GPU must lie in device memory: " + in_words(address, bytes) + " do not.");
  const auto ordinal = static_cast<int>(facts.ordinal);
  if (ordinal != gpu.facts.ordinal)
    fail_usage("A rank's tensors must lie on its device, " + gpu.facts.words() + ": this one lies on device " +
               std::to_string(ordinal) + ". Move it, or call torch.cuda.set_device before init().");
}

void check_range(const Gpu& gpu, const PointerFacts& facts, DevicePointer address, std::uint64_t bytes) {
  check_device(gpu, facts, address, bytes);
  if (facts.range_size > 0 && address + bytes > facts.range_start + facts.range_size)
    fail_usage("A tensor must lie in one allocation: " + in_words(address, bytes) + " reach beyond " +
               in_words(facts.range_start, facts.range_size) + ".");
}

std::uint64_t mapping(const Driver& driver, PointerAttribute which, DevicePointer address) {
  std::uint64_t value = 0;
  return driver->pointer_get_attribute(&value, which, address) == Result::success ? value : 0;
}

SharedRange refused(SharedRange range, std::string_view reason) {
  range.route = Route::none;
  store_text(range.reason, reason);
  return range;
}

SharedRange by_legacy_handle(const Driver& driver, SharedRange range, const PointerFacts& facts) {
  range.base = facts.range_start;
  range.base_bytes = facts.range_size;
  range.identity = facts.buffer_id;
  range.route = Route::legacy;
  const Result result = driver->ipc_get_memory_handle(&range.handle, range.base);
  if (result == Result::success) return range;
  return refused(range, "cuIpcGetMemHandle refused: " + driver.words(result));
}

// The pieces of physical memory from the one with the range's beginning to the one with its end.
SharedRange by_descriptors(const Driver& driver, SharedRange range) {
  range.base = mapping(driver, PointerAttribute::mapping_base, range.address);
  const std::uint64_t piece = mapping(driver, PointerAttribute::mapping_size, range.address);
  if (range.base == 0 || piece == 0)
    return refused(range, "the driver does not tell the pieces of virtual memory apart");
  range.route = Route::descriptors;
  DevicePointer at = range.base;
  for (; at < range.address + range.bytes || range.pieces == 0; at += piece, ++range.pieces) {
    const std::uint64_t id = mapping(driver, PointerAttribute::memory_block_id, at);
    if (id == 0 || mapping(driver, PointerAttribute::mapping_size, at) != piece)
      return refused(range, "its pieces of virtual memory are of different sizes, or unknown to the driver");
    range.identity = mix(range.identity, id);
  }
  range.base_bytes = at - range.base;
  return range;
}

}  // namespace

ProcessIdentity ProcessIdentity::of_this_process() {
  struct stat status{};
  if (stat("/proc/self/ns/pid", &status) != 0) status.st_ino = 0;
  return {static_cast<std::uint64_t>(getpid()), status.st_ino};
}

Descriptors::~Descriptors() {
  for (const int number : numbers_) close(number);
}

SharedRange share(const Gpu& gpu, const ProcessIdentity& self, DevicePointer address, std::size_t bytes) {
  const Driver& driver = *gpu.driver;
  const CurrentContext current(gpu);
  const RelaxedCapture relaxed(driver);
  const PointerFacts facts = facts_of(driver, address);
  check_range(gpu, facts, address, bytes);
  SharedRange range;
  range.owner = self;
  range.device = gpu.facts.uuid;
  range.address = address;
  range.bytes = bytes;
  if (facts.managed != 0) return refused(range, "managed memory cannot be shared between processes");
  if (facts.legacy_capable != 0 && gpu.facts.has_legacy_ipc) return by_legacy_handle(driver, range, facts);
  if (facts.pool != 0)
    return refused(range, "memory of cudaMallocAsync cannot be shared unless its pool was made for it");
  if ((facts.handle_types & handle_type_posix_descriptor) != 0 && gpu.facts.has_posix_descriptors)
    return by_descriptors(driver, range);
  if (facts.legacy_capable != 0) return refused(range, "the device does not support CUDA IPC");
  return refused(range, "its virtual memory was not made to be shared (CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)");
}

void check_on_device(const Gpu& gpu, DevicePointer address, std::size_t bytes) {
  const Driver& driver = *gpu.driver;
  const CurrentContext current(gpu);
  const RelaxedCapture relaxed(driver);
  check_device(gpu, facts_of(driver, address), address, bytes);
}

Descriptors descriptors_of(const Gpu& gpu, const SharedRange& range) {
  Descriptors descriptors;
  if (range.route != Route::descriptors) return descriptors;
  const Driver& driver = *gpu.driver;
  const CurrentContext current(gpu);
  const RelaxedCapture relaxed(driver);
  descriptors.reserve(range.pieces);
  for (std::uint32_t piece = 0; piece < range.pieces; ++piece) {
    AllocationHandle handle = 0;
    auto* const address = reinterpret_cast<void*>(range.base + piece * (range.base_bytes / range.pieces));
    driver.check(driver->retain_allocation(&handle, address), "find the memory behind an address");
    int descriptor = -1;
    const Result exported = driver->export_allocation(&descriptor, handle, handle_type_posix_descriptor, 0);
    driver->release_allocation(handle);
    driver.check(exported, "export memory as a descriptor");
    descriptors.add(descriptor);
  }
  return descriptors;
}

}  // namespace ringred::cuda
