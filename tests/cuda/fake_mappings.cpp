// The fake driver: virtual memory, and host memory that is registered.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "tests/cuda/fake_call.h"

namespace ringred::check {
namespace {

Result retain_allocation(AllocationHandle* handle, void* address) {
  const Call call("cuMemRetainAllocationHandle");
  if (call.fails()) return call.result();
  const auto region = here().region_at(reinterpret_cast<DevicePointer>(address));
  if (region == nullptr || region->storage->legacy_capable) return Result::invalid_value;
  *handle = region->storage->buffer_id;
  here().machine.handles[*handle] = region->storage;
  ++here().held_allocations[*handle];
  return Result::success;
}

Result release_allocation(AllocationHandle handle) {
  const Call call("cuMemRelease");
  const auto found = here().held_allocations.find(handle);
  if (found == here().held_allocations.end()) {
    here().machine.note_mistake("an allocation handle was released that is not held");
    return Result::invalid_value;
  }
  if (--found->second == 0) here().held_allocations.erase(found);
  return call.result();
}

std::uint64_t inode_of(int descriptor) {
  struct stat status{};
  return fstat(descriptor, &status) == 0 ? status.st_ino : 0;
}

Result export_allocation(void* descriptor, AllocationHandle handle, unsigned type, unsigned long long) {
  const Call call("cuMemExportToShareableHandle");
  if (call.fails()) return call.result();
  const auto& storage = here().machine.handles.at(handle);
  if (!storage->exportable || type != handle_type_posix_descriptor) return Result::not_supported;
  const int made = memfd_create("fake allocation", MFD_CLOEXEC);
  here().machine.descriptors[inode_of(made)] = storage;
  std::memcpy(descriptor, &made, sizeof made);
  return Result::success;
}

Result import_allocation(AllocationHandle* handle, void* descriptor, unsigned type) {
  const Call call("cuMemImportFromShareableHandle");
  if (call.fails()) return call.result();
  const auto number = static_cast<int>(reinterpret_cast<std::intptr_t>(descriptor));
  const auto found = here().machine.descriptors.find(inode_of(number));
  if (type != handle_type_posix_descriptor || found == here().machine.descriptors.end()) return Result::invalid_value;
  if (here().machine.ipc_refused) return Result::not_permitted;
  *handle = found->second->buffer_id;
  here().machine.handles[*handle] = found->second;
  ++here().held_allocations[*handle];
  return Result::success;
}

Result reserve_addresses(DevicePointer* address, std::size_t bytes, std::size_t, DevicePointer, unsigned long long) {
  const Call call("cuMemAddressReserve");
  if (call.fails()) return call.result();
  *address = here().add_region(here().free_range(bytes), nullptr, 0, bytes)->address;
  return Result::success;
}

Result free_addresses(DevicePointer address, std::size_t bytes) {
  const Call call("cuMemAddressFree");
  std::size_t found = 0;
  for (auto at = here().regions.lower_bound(address); at != here().regions.end() && at->first < address + bytes;) {
    if (at->second->storage != nullptr) here().machine.note_mistake("addresses were freed that are mapped");
    found += at->second->bytes;
    at = here().regions.erase(at);
  }
  if (found != bytes) here().machine.note_mistake("addresses were freed that are not reserved");
  return call.result();
}

// The rest of a reserved range stays reserved.
void cut_reserved(DevicePointer address, std::size_t bytes) {
  const auto whole = here().region_at(address);
  if (whole == nullptr || whole->storage != nullptr) {
    here().machine.note_mistake("memory is mapped to addresses that are not reserved");
    return;
  }
  const DevicePointer start = whole->address, end = whole->address + whole->bytes;
  here().regions.erase(start);
  if (start < address) here().add_region(start, nullptr, 0, address - start);
  if (address + bytes < end) here().add_region(address + bytes, nullptr, 0, end - address - bytes);
}

Result map_allocation(DevicePointer address, std::size_t bytes, std::size_t offset, AllocationHandle handle,
                      unsigned long long) {
  const Call call("cuMemMap");
  if (call.fails()) return call.result();
  const auto& storage = here().machine.handles.at(handle);
  if (offset + bytes > storage->bytes) return Result::invalid_value;
  cut_reserved(address, bytes);
  const auto region = here().add_region(address, storage, offset, bytes);
  region->imported = true;
  region->accessible = false;
  ++storage->opened;
  return Result::success;
}

Result unmap_addresses(DevicePointer address, std::size_t bytes) {
  const Call call("cuMemUnmap");
  const auto region = here().region_at(address);
  if (region == nullptr || region->storage == nullptr || region->address != address || region->bytes != bytes) {
    here().machine.note_mistake("addresses were unmapped that are not mapped");
    return Result::invalid_value;
  }
  --region->storage->opened;
  region->live = false;
  here().regions.erase(address);
  here().add_region(address, nullptr, 0, bytes);
  return call.result();
}

Result set_access(DevicePointer address, std::size_t bytes, const AccessDescription* description, std::size_t) {
  const Call call("cuMemSetAccess");
  if (call.fails()) return call.result();
  const int device = here().visible[static_cast<std::size_t>(description->location.id)];
  for (auto at = here().regions.lower_bound(address); at != here().regions.end() && at->first < address + bytes; ++at) {
    if (at->second->storage == nullptr) return Result::invalid_value;
    if (!reaches(device, at->second->storage->device)) return Result::peer_access_unsupported;
    at->second->accessible = true;
  }
  return Result::success;
}

Result host_register(void* address, std::size_t bytes, unsigned flags) {
  const Call call("cuMemHostRegister_v2");
  if (call.fails()) return call.result();
  if ((flags & host_register_device_map) == 0) return Result::invalid_value;
  if (here().registered.contains(address)) return Result::host_memory_already_registered;
  auto storage = std::make_shared<Storage>(static_cast<std::byte*>(address), bytes);
  here().registered[address] = here().add_region(here().free_range(bytes), storage, 0, bytes);
  return Result::success;
}

Result host_unregister(void* address) {
  const Call call("cuMemHostUnregister");
  const auto found = here().registered.find(address);
  if (found == here().registered.end()) {
    here().machine.note_mistake("host memory was unregistered that is not registered");
    return Result::invalid_value;
  }
  found->second->live = false;
  here().regions.erase(found->second->address);
  here().registered.erase(found);
  return call.result();
}

Result host_get_device_pointer(DevicePointer* device, void* address, unsigned) {
  const Call call("cuMemHostGetDevicePointer_v2");
  if (call.fails()) return call.result();
  const auto found = here().registered.find(address);
  if (found == here().registered.end()) return Result::invalid_value;
  *device = found->second->address;
  return Result::success;
}

}  // namespace

void add_mapping_functions(Functions& table) {
  table.retain_allocation = retain_allocation;
  table.release_allocation = release_allocation;
  table.export_allocation = export_allocation;
  table.import_allocation = import_allocation;
  table.reserve_addresses = reserve_addresses;
  table.free_addresses = free_addresses;
  table.map_allocation = map_allocation;
  table.unmap_addresses = unmap_addresses;
  table.set_access = set_access;
  table.host_register = host_register;
  table.host_unregister = host_unregister;
  table.host_get_device_pointer = host_get_device_pointer;
}

}  // namespace ringred::check
