#include "csrc/cuda/mappings.h"

#include <algorithm>

#include "csrc/base/error.h"
#include "csrc/cuda/capture.h"

namespace ringred::cuda {
namespace {

bool is_same(const SharedRange& one, const SharedRange& other) {
  return one.owner == other.owner && one.base == other.base && one.base_bytes == other.base_bytes &&
         one.identity == other.identity;
}

bool overlap(const SharedRange& one, const SharedRange& other) {
  return one.owner == other.owner && one.base < other.base + other.base_bytes && other.base < one.base + one.base_bytes;
}

const char* remedy(Result result) {
  switch (result) {
    case Result::peer_access_unsupported:
    case Result::too_many_peers:
      return " The two devices cannot reach each other's memory: look at nvidia-smi topo -p2p rw.";
    case Result::not_supported:
      return " This system has no CUDA IPC.";
    case Result::out_of_memory:
      return "";
    default:
      return " Ranks must run as one user, and their containers must share namespaces (--ipc=host --pid=host).";
  }
}

}  // namespace

Mappings::EntryPointer Mappings::find(const SharedRange& range) {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const EntryPointer& entry) { return is_same(entry->range, range); });
  if (found == entries_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found);
  return entries_.front();
}

bool Mappings::needs_descriptors(const SharedRange& range) const {
  return range.route == Route::descriptors && !(range.owner == self_) &&
         std::none_of(entries_.begin(), entries_.end(),
                      [&](const EntryPointer& entry) { return is_same(entry->range, range); });
}

Mappings::Opening Mappings::open(const SharedRange& range, std::span<const int> descriptors) {
  if (range.owner == self_) return {Lease(nullptr, range.address), ""};
  if (range.route == Route::none) return {std::nullopt, range.reason};
  EntryPointer entry = find(range);
  if (entry == nullptr) {
    const CurrentContext current(gpu_);
    const RelaxedCapture relaxed(*gpu_.driver);
    make_room(range);
    Entry made{range, 0};
    const std::string refusal = map(range, descriptors, made.base);
    if (!refusal.empty()) return {std::nullopt, refusal};
    entry = entries_.emplace_front(std::make_shared<const Entry>(made));
  }
  const DevicePointer address = entry->base + (range.address - range.base);
  return {Lease(std::move(entry), address), ""};
}

// Closes what was freed by its owner, which is where the new range lies now, and what is idle for too long.
void Mappings::make_room(const SharedRange& range) {
  std::size_t idle = 0;
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const bool held = entry->use_count() > 1;
    const bool stale = overlap((*entry)->range, range);
    if (stale && held)
      fail_usage("Device memory must not be freed while a call uses it: process " + std::to_string(range.owner.number) +
                 " has freed " + std::to_string((*entry)->range.base_bytes) +
                 " bytes that a call of this rank still reads or writes. Wait for the call before freeing tensors.");
    const bool excess = !held && ++idle >= most_idle;
    if (stale || excess) {
      close(**entry);
      entry = entries_.erase(entry);
    } else {
      ++entry;
    }
  }
}

// Returns why not, or "".
std::string Mappings::map(const SharedRange& range, std::span<const int> descriptors, DevicePointer& base) {
  const Driver& driver = *gpu_.driver;
  Result result = Result::success;
  if (range.route == Route::legacy) {
    result = driver->ipc_open_memory(&base, range.handle, ipc_lazy_peer_access);
  } else {
    if (descriptors.size() != range.pieces)
      fail_usage("Memory of " + std::to_string(range.pieces) + " pieces needs as many descriptors: there are " +
                 std::to_string(descriptors.size()) + ".");
    result = driver->reserve_addresses(&base, range.base_bytes, 0, 0, 0);
    if (result == Result::success) result = map_pieces(range, descriptors, base);
  }
  if (result == Result::success) return "";
  return "opening a peer's memory was refused: " + driver.words(result) + "." + remedy(result);
}

// All of it, or nothing: then the addresses are given back, too.
Result Mappings::map_pieces(const SharedRange& range, std::span<const int> descriptors, DevicePointer base) {
  const Driver& driver = *gpu_.driver;
  const std::uint64_t piece_bytes = range.base_bytes / range.pieces;
  Result result = Result::success;
  std::uint32_t mapped = 0;
  for (; mapped < range.pieces && result == Result::success; ++mapped) {
    AllocationHandle handle = 0;
    auto* const descriptor = reinterpret_cast<void*>(static_cast<std::intptr_t>(descriptors[mapped]));
    result = driver->import_allocation(&handle, descriptor, handle_type_posix_descriptor);
    if (result != Result::success) break;
    result = driver->map_allocation(base + mapped * piece_bytes, piece_bytes, 0, handle, 0);
    driver->release_allocation(handle);  // the mapping holds the memory
    if (result != Result::success) break;
  }
  const AccessDescription access{{location_device, gpu_.facts.device}, access_read_write};
  if (result == Result::success) result = driver->set_access(base, range.base_bytes, &access, 1);
  if (result != Result::success) unmap(base, piece_bytes, mapped, range.base_bytes);
  return result;
}

void Mappings::unmap(DevicePointer base, std::uint64_t piece_bytes, std::uint32_t pieces, std::uint64_t reserved) {
  const Driver& driver = *gpu_.driver;
  for (std::uint32_t piece = 0; piece < pieces; ++piece)
    driver->unmap_addresses(base + piece * piece_bytes, piece_bytes);
  driver->free_addresses(base, reserved);
}

// What fails here is not said: it fails after an earlier error, which was, or at the end of the process.
void Mappings::close(const Entry& entry) {
  if (entry.range.route == Route::legacy)
    (*gpu_.driver)->ipc_close_memory(entry.base);
  else
    unmap(entry.base, entry.range.base_bytes / entry.range.pieces, entry.range.pieces, entry.range.base_bytes);
}

void Mappings::close_all() {
  if (entries_.empty()) return;
  const Driver& driver = *gpu_.driver;
  const RelaxedCapture relaxed(driver);
  const bool pushed = driver->context_push(gpu_.context->get()) == Result::success;
  for (const EntryPointer& entry : entries_) close(*entry);
  entries_.clear();
  Context popped = nullptr;
  if (pushed) driver->context_pop(&popped);
}

bool end_sharing(Mappings& mappings, FunctionRef<bool()> work_ends, FunctionRef<bool()> meet,
                 FunctionRef<void()> free_own) {
  if (!work_ends()) return false;  // 1
  mappings.close_all();            // 2
  if (!meet()) return false;       // 3
  free_own();                      // 4
  return true;
}

}  // namespace ringred::cuda
