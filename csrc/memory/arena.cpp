#include "csrc/memory/arena.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

#include "csrc/base/error.h"
#include "csrc/base/round.h"
#include "csrc/memory/limits.h"

namespace ringred {
namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t huge_page = std::size_t{2} << 20;

// Large arrays begin on a huge page and fill whole ones; small ones would waste them.
std::size_t alignment_of(std::size_t bytes) {
  return bytes >= huge_page / 2 ? huge_page : page;
}

}  // namespace

Arena::Block::Block(std::shared_ptr<Arena> arena, std::size_t offset, std::size_t bytes)
    : arena_(std::move(arena)), offset_(offset), bytes_(bytes) {}

Arena::Block::~Block() {
  if (!kept_) arena_->free(offset_, bytes_);
}

Arena::Arena(Segment segment, std::size_t start) : segment_(std::move(segment)), start_(start), owner_(getpid()) {
  free_[start_] = segment_.size() - start_;
}

std::shared_ptr<Arena::Block> Arena::allocate(std::size_t bytes) {
  auto block = reserve(bytes);
  block->commit(0, block->size());
  return block;
}

std::shared_ptr<Arena::Block> Arena::reserve(std::size_t bytes) {
  const std::size_t unit = alignment_of(bytes);
  if (bytes > segment_.size() - start_)
    fail_system("The arena holds " + in_words(segment_.size() - start_) + " of addresses: an array of " +
                in_words(bytes) + " does not fit. Raise RINGRED_ARENA_BYTES.");
  const std::size_t size = round_up(std::max<std::size_t>(bytes, 1), unit);
  std::size_t offset = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto fits = [&](const auto& range) {
      return round_up(range.first, unit) + size <= range.first + range.second;
    };
    const auto found = std::find_if(free_.begin(), free_.end(), fits);
    if (found == free_.end())
      fail_system("The arena has no free range of " + in_words(size) + " in its " + in_words(segment_.size() - start_) +
                  ". Free arrays, or raise RINGRED_ARENA_BYTES.");
    const auto [first, length] = *found;
    offset = round_up(first, unit);
    free_.erase(found);
    if (offset > first) free_[first] = offset - first;
    if (offset + size < first + length) free_[offset + size] = first + length - offset - size;
  }
  return std::make_shared<Block>(shared_from_this(), offset, size);
}

void Arena::free(std::size_t offset, std::size_t bytes) {
  if (getpid() != owner_) return;
  const std::lock_guard lock(mutex_);
  if (retired_) return;
  segment_.release(offset, bytes);
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && offset + bytes == next->first) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += bytes;
      return;
    }
  }
  free_[offset] = bytes;
}

void Arena::retire() {
  const std::lock_guard lock(mutex_);
  retired_ = true;
}

bool Arena::retired() {
  const std::lock_guard lock(mutex_);
  return retired_;
}

std::size_t Arena::location(const void* data, std::size_t bytes) const {
  const auto base = reinterpret_cast<std::uintptr_t>(segment_.base());
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const bool inside = address >= base + start_ && bytes <= segment_.size() && address <= base + segment_.size() - bytes;
  return inside ? address - base + 1 : 0;
}

}  // namespace ringred
