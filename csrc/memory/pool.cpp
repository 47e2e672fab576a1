#include "csrc/memory/pool.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "csrc/memory/imports.h"

namespace ringred {

using BlockPointer = std::shared_ptr<Arena::Block>;

// The blocks of one pool. Guarded by the registry's lock.
struct Pool::Stock {
  std::shared_ptr<Arena> arena;
  std::map<std::size_t, std::size_t> missing;             // by bytes: blocks that have not been made yet
  std::map<std::size_t, std::vector<BlockPointer>> free;  // by bytes
  std::size_t made = 0;
  bool armed = false;
  bool open = true;  // its pool exists

  BlockPointer take(std::size_t bytes) {
    if (arena->retired()) return nullptr;  // peers may still write to what is free
    if (auto found = free.find(bytes); found != free.end() && !found->second.empty()) {
      BlockPointer block = std::move(found->second.back());
      found->second.pop_back();
      return block;
    }
    const auto found = missing.find(bytes);
    if (found == missing.end() || found->second == 0) return nullptr;
    BlockPointer block = arena->allocate(bytes);
    free[bytes].reserve(++made);  // so that a block can always be returned
    --found->second;
    return block;
  }
};

// What torch's threads see. It is never destroyed: tensors outlive everything else.
struct Pool::Registry {
  struct Held {
    BlockPointer block;
    std::size_t bytes;
    std::shared_ptr<Stock> stock;
  };
  struct Range {
    std::atomic<std::uintptr_t> begin{0}, end{0};
  };

  std::mutex mutex;
  std::vector<std::shared_ptr<Stock>> stocks;
  std::unordered_map<const void*, Held> held;
  std::atomic<int> armed{0};
  std::atomic<std::size_t> least{~std::size_t{0}};  // no pool has smaller blocks
  std::array<Range, 16> ranges;                     // of the arenas that pools have been made for; only added to
  const pid_t owner = getpid();

  static Registry& the() {
    static auto* registry = new Registry;
    return *registry;
  }

  // Whether memory of that arena can be told from other memory from now on.
  bool covers(Arena& arena) {
    const auto begin = reinterpret_cast<std::uintptr_t>(arena.segment().base());
    for (Range& range : ranges) {
      if (range.begin == 0) {
        range.end = begin + arena.segment().size();
        range.begin = begin;
      }
      if (range.begin == begin && range.end == begin + arena.segment().size()) return true;
    }
    return false;
  }

  bool may_hold(const void* data) const {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    for (const Range& range : ranges) {
      const std::uintptr_t begin = range.begin.load(std::memory_order_acquire);
      if (begin == 0) return false;
      if (address >= begin && address < range.end.load(std::memory_order_relaxed)) return true;
    }
    return false;
  }

  void* take(std::size_t bytes) {
    if (getpid() != owner) return nullptr;
    const std::lock_guard lock(mutex);
    for (const auto& stock : stocks) {
      if (!stock->armed) continue;
      if (BlockPointer block = stock->take(bytes)) {
        void* data = block->data();
        held[data] = {std::move(block), bytes, stock};
        return data;
      }
    }
    return nullptr;
  }

  // Whether it was a pool's.
  bool give(const void* data) {
    if (getpid() != owner) return true;
    const std::lock_guard lock(mutex);
    const auto found = held.find(data);
    if (found == held.end()) return false;
    Held& block = found->second;
    if (block.stock->open) block.stock->free[block.bytes].push_back(std::move(block.block));
    held.erase(found);
    return true;
  }
};

int pool_memalign(void** place, std::size_t alignment, std::size_t bytes) noexcept {
  constexpr std::size_t page = 4096;
  Pool::Registry& registry = Pool::Registry::the();
  if (registry.armed > 0 && bytes >= registry.least && alignment <= page) {
    try {
      if (void* data = registry.take(bytes)) {
        *place = data;
        return 0;
      }
    } catch (const std::exception&) {  // no more memory in the arena: the C library may have some
    }
  }
  return posix_memalign(place, alignment, bytes);
}

void pool_free(void* data) noexcept {
  Pool::Registry& registry = Pool::Registry::the();
  if (data != nullptr && registry.may_hold(data) && registry.give(data)) return;
  std::free(data);
}

Pool::Pool(std::shared_ptr<Arena> arena, const std::vector<std::size_t>& sizes) : stock_(std::make_shared<Stock>()) {
  Registry& registry = Registry::the();
  const std::lock_guard lock(registry.mutex);
  if (registry.covers(*arena))
    for (const std::size_t bytes : sizes) {
      ++stock_->missing[bytes];
      if (bytes < registry.least) registry.least = bytes;
    }
  stock_->arena = std::move(arena);
  registry.stocks.push_back(stock_);
}

Pool::~Pool() {
  arm(false);
  Registry& registry = Registry::the();
  const std::lock_guard lock(registry.mutex);
  std::erase(registry.stocks, stock_);
  stock_->open = false;
  stock_->free.clear();
}

void Pool::arm(bool armed) {
  Registry& registry = Registry::the();
  const std::lock_guard lock(registry.mutex);
  if (std::exchange(stock_->armed, armed) != armed) registry.armed += armed ? 1 : -1;
}

bool Pool::holds(const void* data, std::size_t bytes) const {
  Registry& registry = Registry::the();
  if (!registry.may_hold(data)) return false;
  const std::lock_guard lock(registry.mutex);
  const auto found = registry.held.find(data);
  return found != registry.held.end() && found->second.bytes == bytes && found->second.stock->arena == stock_->arena;
}

std::size_t Pool::blocks() const {
  const std::lock_guard lock(Registry::the().mutex);
  return stock_->made;
}

bool replace_allocator(const char* library) {
  static_cast<void>(Pool::Registry::the());
  // In this order: what comes from a pool has to be able to go back.
  return replace_import(library, "free", reinterpret_cast<void*>(pool_free)) > 0 &&
         replace_import(library, "posix_memalign", reinterpret_cast<void*>(pool_memalign)) > 0;
}

}  // namespace ringred
