#include "tests/cuda/fake_machine.h"

#include <algorithm>
#include <chrono>

#include "tests/cuda/fake_streams.h"

namespace ringred::check {

Storage::Storage(std::size_t size, int on_device)
    : bytes(size), device(on_device), room_(size + 2 * zone + alignment, pattern) {
  void* start = room_.data() + zone;
  std::size_t space = size + zone + alignment;
  data = static_cast<std::byte*>(std::align(alignment, size, start, space));
}

bool Storage::is_whole() const {
  if (room_.empty()) return true;
  const auto untouched = [](std::byte byte) { return byte == pattern; };
  return std::all_of(room_.data(), static_cast<const std::byte*>(data), untouched) &&
         std::all_of(static_cast<const std::byte*>(data) + bytes, room_.data() + room_.size(), untouched);
}

FakeMachine::FakeMachine(int device_count) : devices(static_cast<std::size_t>(device_count)) {
  for (int device = 0; device < device_count; ++device)
    devices[static_cast<std::size_t>(device)].uuid.bytes[15] = static_cast<unsigned char>(device + 1);
  for (int one = 0; one < device_count; ++one)
    for (int other = 0; other < device_count; ++other)
      if (one != other) peers.insert({one, other});
}

void FakeMachine::note_mistake(const std::string& text) {
  const std::lock_guard lock(mutex);
  mistakes_.push_back(text);
}

int FakeMachine::mistake_count() {
  const std::lock_guard lock(mutex);
  return static_cast<int>(mistakes_.size());
}

std::string FakeMachine::mistakes() {
  const std::lock_guard lock(mutex);
  std::string text;
  for (const std::string& one : mistakes_) text += one + "; ";
  return text;
}

FakeProcess::FakeProcess(FakeMachine& on, int its_number, std::vector<int> visible_devices)
    : machine(on), number(its_number), visible(std::move(visible_devices)), context_references(visible.size(), 0) {
  for (std::size_t ordinal = 0; ordinal < visible.size(); ++ordinal)
    contexts.push_back(std::make_unique<CUctx_st>(CUctx_st{this, static_cast<int>(ordinal)}));
  legacy = std::make_unique<CUstream_st>(*this);
}

FakeProcess::~FakeProcess() {
  kill();
  for (CUstream_st* stream : streams) retired.emplace_back(stream);
  retired.clear();
  per_thread.clear();
  legacy.reset();
  for (CUevent_st* event : events) delete event;
}

void FakeProcess::kill() {
  killed = true;
}

void FakeProcess::drain() {
  const auto is_idle = [&] {
    const std::lock_guard lock(machine.mutex);
    const auto idle = [](const auto& stream) { return stream->is_idle(); };
    return legacy->is_idle() && std::all_of(streams.begin(), streams.end(), idle) &&
           std::all_of(retired.begin(), retired.end(), idle) &&
           std::all_of(per_thread.begin(), per_thread.end(), [](const auto& entry) { return entry.second->is_idle(); });
  };
  while (!killed && !is_idle()) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

DevicePointer FakeProcess::free_range(std::size_t bytes) {
  constexpr DevicePointer page = 4096;
  DevicePointer address = static_cast<DevicePointer>(number + 1) << 40;
  for (const auto& [start, region] : regions) {
    if (start >= address + bytes) break;
    address = std::max(address, (start + region->bytes + page - 1) / page * page);
  }
  return address;
}

std::shared_ptr<Region> FakeProcess::add_region(DevicePointer address, std::shared_ptr<Storage> storage,
                                                std::size_t offset, std::size_t bytes) {
  auto region = std::make_shared<Region>();
  region->address = region->range_start = address;
  region->bytes = region->range_bytes = bytes;
  region->offset = offset;
  region->storage = std::move(storage);
  regions[address] = region;
  return region;
}

std::shared_ptr<Region> FakeProcess::region_at(DevicePointer address) {
  auto after = regions.upper_bound(address);
  if (after == regions.begin()) return nullptr;
  const auto& region = std::prev(after)->second;
  return address < region->address + region->bytes ? region : nullptr;
}

std::byte* FakeProcess::host(DevicePointer address, std::size_t bytes) {
  const std::lock_guard lock(machine.mutex);
  const auto region = region_at(address);
  if (region == nullptr || region->storage == nullptr || !region->accessible ||
      address + bytes > region->address + region->bytes) {
    machine.note_mistake("process " + std::to_string(number) + " uses an address that it cannot access");
    return nullptr;
  }
  if (region->storage->freed) machine.note_mistake("memory is used after its owner freed it");
  return region->storage->data + region->offset + (address - region->address);
}

DevicePointer FakeProcess::allocate_pooled(std::size_t bytes, int ordinal) {
  const std::lock_guard lock(machine.mutex);
  auto storage = std::make_shared<Storage>(bytes, visible[static_cast<std::size_t>(ordinal)]);
  storage->pooled = true;
  storage->buffer_id = machine.next_id++;
  storage->owner = this;
  return add_region(free_range(bytes), storage, 0, bytes)->address;
}

DevicePointer FakeProcess::allocate_managed(std::size_t bytes, int ordinal) {
  const DevicePointer address = allocate_pooled(bytes, ordinal);
  regions[address]->storage->pooled = false;
  regions[address]->storage->managed = true;
  return address;
}

DevicePointer FakeProcess::map_physical(std::size_t pieces, std::size_t piece_bytes, bool exportable, int ordinal) {
  const std::lock_guard lock(machine.mutex);
  const DevicePointer start = free_range(pieces * piece_bytes);
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    auto storage = std::make_shared<Storage>(piece_bytes, visible[static_cast<std::size_t>(ordinal)]);
    storage->exportable = exportable;
    storage->buffer_id = machine.next_id++;
    storage->owner = this;
    const auto region = add_region(start + piece * piece_bytes, storage, 0, piece_bytes);
    region->range_start = start;
    region->range_bytes = pieces * piece_bytes;
  }
  return start;
}

void FakeProcess::unmap_physical(DevicePointer address) {
  const std::lock_guard lock(machine.mutex);
  const auto first = region_at(address);
  for (DevicePointer at = first->range_start; at < first->range_start + first->range_bytes;) {
    const auto region = regions.at(at);
    region->live = false;
    at += region->bytes;
    regions.erase(region->address);
  }
}

std::string FakeProcess::open_things() {
  const std::lock_guard lock(machine.mutex);
  std::string text;
  const auto say = [&](const char* what, std::size_t count) {
    if (count > 0) text += std::to_string(count) + " " + what + "; ";
  };
  std::size_t own = 0, imported = 0, reserved = 0;
  for (const auto& [address, region] : regions)
    ++(region->storage == nullptr    ? reserved
       : region->imported            ? imported
       : region->storage->device < 0 ? reserved
                                     : own);
  say("allocations", own);
  say("imported mappings", imported);
  say("reserved or registered ranges", reserved);
  say("registrations", registered.size());
  say("streams", streams.size());
  say("events", events.size());
  std::size_t contexts_held = 0;
  for (const int count : context_references) contexts_held += static_cast<std::size_t>(count);
  say("references to contexts", contexts_held);
  say("allocation handles", held_allocations.size());
  return text;
}

}  // namespace ringred::check
