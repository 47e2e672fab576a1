// The fake driver: allocations, what a pointer is, handles between processes.
#include <algorithm>
#include <cstring>

#include "tests/cuda/fake_call.h"

namespace ringred::check {
namespace {

Result memory_allocate(DevicePointer* address, std::size_t bytes) {
  const Call call("cuMemAlloc_v2");
  if (call.fails()) return call.result();
  if (current_context() == nullptr) return Result::invalid_context;
  if (forbidden_by_capture()) return Result::capture_unsupported;
  auto storage = std::make_shared<Storage>(bytes, current_device());
  storage->legacy_capable = true;
  storage->buffer_id = here().machine.next_id++;
  storage->owner = &here();
  *address = here().add_region(here().free_range(bytes), storage, 0, bytes)->address;
  return Result::success;
}

Result memory_free(DevicePointer address) {
  const Call call("cuMemFree_v2");
  const auto found = here().regions.find(address);
  if (found == here().regions.end() || found->second->imported) {
    here().machine.note_mistake("memory was freed that is not allocated");
    return Result::invalid_value;
  }
  Storage& storage = *found->second->storage;
  if (storage.opened > 0) here().machine.note_mistake("memory was freed while a peer has it open");
  if (!storage.is_whole()) here().machine.note_mistake("somebody wrote beside an allocation");
  storage.freed = true;
  found->second->live = false;
  here().regions.erase(found);
  return call.result();
}

std::uint64_t attribute_of(const Region* region, PointerAttribute attribute) {
  const Storage* storage = region == nullptr ? nullptr : region->storage.get();
  if (storage == nullptr) return 0;
  switch (attribute) {
    case PointerAttribute::memory_type:
      return static_cast<std::uint64_t>(storage->device < 0 ? MemoryType::host : MemoryType::device);
    case PointerAttribute::memory_block_id:
    case PointerAttribute::buffer_id:
      return storage->buffer_id;
    case PointerAttribute::is_managed:
      return storage->managed;
    case PointerAttribute::device_ordinal: {
      const auto at = std::find(here().visible.begin(), here().visible.end(), storage->device);
      return static_cast<std::uint64_t>(at - here().visible.begin());
    }
    case PointerAttribute::is_legacy_ipc_capable:
      return storage->legacy_capable && !region->imported;
    case PointerAttribute::range_start:
      return region->range_start;
    case PointerAttribute::range_size:
      return region->range_bytes;
    case PointerAttribute::allowed_handle_types:
      return storage->exportable ? handle_type_posix_descriptor : 0;
    case PointerAttribute::memory_pool:
      return storage->pooled ? 1 : 0;
    case PointerAttribute::mapping_size:
      return region->bytes;
    case PointerAttribute::mapping_base:
      return region->address;
  }
  return 0;
}

bool is_narrow(PointerAttribute attribute) {
  return attribute == PointerAttribute::memory_type || attribute == PointerAttribute::device_ordinal;
}

void store_attribute(void* value, PointerAttribute attribute, std::uint64_t number) {
  const bool is_flag =
      attribute == PointerAttribute::is_managed || attribute == PointerAttribute::is_legacy_ipc_capable;
  std::memcpy(value, &number, is_flag ? 1 : is_narrow(attribute) ? 4 : 8);
}

Result pointer_get_attributes(unsigned count, PointerAttribute* attributes, void** values, DevicePointer address) {
  const Call call("cuPointerGetAttributes");
  if (call.fails()) return call.result();
  const auto region = here().region_at(address);
  for (unsigned i = 0; i < count; ++i)
    store_attribute(values[i], attributes[i], attribute_of(region.get(), attributes[i]));
  return Result::success;
}

Result pointer_get_attribute(void* value, PointerAttribute attribute, DevicePointer address) {
  const Call call("cuPointerGetAttribute");
  if (call.fails()) return call.result();
  const auto region = here().region_at(address);
  if (region == nullptr) return Result::invalid_value;
  store_attribute(value, attribute, attribute_of(region.get(), attribute));
  return Result::success;
}

Result ipc_get_memory_handle(IpcHandle* handle, DevicePointer base) {
  const Call call("cuIpcGetMemHandle");
  if (call.fails()) return call.result();
  const auto region = here().region_at(base);
  if (region == nullptr || !region->storage->legacy_capable || region->address != base) return Result::invalid_value;
  std::memset(handle, 0, sizeof *handle);
  const std::uint64_t id = region->storage->buffer_id;
  std::memcpy(handle->reserved, &base, sizeof base);  // as the real ones, the same again at the same address
  std::memcpy(handle->reserved + 8, &id, sizeof id);
  here().machine.handles[id] = region->storage;
  return Result::success;
}

std::shared_ptr<Region> opened_region(const std::shared_ptr<Storage>& storage) {
  for (const auto& [address, region] : here().regions)
    if (region->imported && region->storage == storage && here().open_counts.contains(address)) return region;
  const auto region = here().add_region(here().free_range(storage->bytes), storage, 0, storage->bytes);
  region->imported = true;
  return region;
}

Result ipc_open_memory(DevicePointer* address, IpcHandle handle, unsigned flags) {
  const Call call("cuIpcOpenMemHandle_v2");
  if (call.fails()) return call.result();
  if (forbidden_by_capture()) return Result::capture_unsupported;
  if (flags != ipc_lazy_peer_access || current_context() == nullptr) return Result::invalid_value;
  std::uint64_t id = 0;
  std::memcpy(&id, handle.reserved + 8, sizeof id);
  const auto found = here().machine.handles.find(id);
  if (found == here().machine.handles.end() || found->second->freed) return Result::invalid_handle;
  if (found->second->owner == &here()) return Result::invalid_context;
  if (here().machine.ipc_refused) return Result::map_failed;
  if (!reaches(current_device(), found->second->device)) return Result::peer_access_unsupported;
  const auto region = opened_region(found->second);
  if (here().open_counts[region->address]++ == 0) ++region->storage->opened;
  *address = region->address;
  return Result::success;
}

Result ipc_close_memory(DevicePointer address) {
  const Call call("cuIpcCloseMemHandle");
  const auto found = here().open_counts.find(address);
  if (found == here().open_counts.end()) {
    here().machine.note_mistake("memory was closed that is not open");
    return Result::invalid_value;
  }
  if (--found->second == 0) {
    here().open_counts.erase(found);
    const auto region = here().region_at(address);
    --region->storage->opened;
    region->live = false;
    here().regions.erase(address);
  }
  return call.result();
}

}  // namespace

void add_memory_functions(Functions& table) {
  table.memory_allocate = memory_allocate;
  table.memory_free = memory_free;
  table.pointer_get_attributes = pointer_get_attributes;
  table.pointer_get_attribute = pointer_get_attribute;
  table.ipc_get_memory_handle = ipc_get_memory_handle;
  table.ipc_open_memory = ipc_open_memory;
  table.ipc_close_memory = ipc_close_memory;
}

}  // namespace ringred::check
