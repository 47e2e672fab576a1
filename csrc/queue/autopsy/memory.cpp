#include "csrc/queue/autopsy/memory.h"

#include "csrc/queue/peek.h"

namespace ringred {

const RankBlock* rank_block(const Scene& scene, int rank) {
  const auto place = static_cast<std::size_t>(rank);
  if (rank < 0 || place >= scene.ranks.size() || scene.ranks[place] == nullptr) return nullptr;
  return scene.ranks[place]->magic.load(std::memory_order_acquire) == RankBlock::magic_value ? scene.ranks[place]
                                                                                             : nullptr;
}

const GroupBlock* group_block(const Scene& scene, int rank, std::size_t group) {
  const RankBlock* block = rank_block(scene, rank);
  const auto place = static_cast<std::size_t>(rank);
  if (block == nullptr || place >= scene.bases.size() || place >= scene.lengths.size()) return nullptr;
  const std::uint64_t offset = block->groups[group].load(std::memory_order_acquire);
  const std::size_t length = scene.lengths[place];
  if (offset == 0 || offset % alignof(GroupBlock) != 0 || length < sizeof(GroupBlock)) return nullptr;
  if (offset > length - sizeof(GroupBlock)) return nullptr;
  return reinterpret_cast<const GroupBlock*>(scene.bases[place] + offset);
}

std::span<const Entry> entries_of(const Scene& scene, int rank, const GroupBlock& block) {
  const auto place = static_cast<std::size_t>(rank);
  const auto offset = static_cast<std::size_t>(reinterpret_cast<const std::byte*>(&block) - scene.bases[place]);
  const std::size_t room = scene.lengths[place] - offset;
  const std::uint64_t at = peek(block.entries_at);
  if (at < sizeof(GroupBlock) || at % alignof(Entry) != 0 || at > room) return {};
  const std::size_t used = std::min(block.entries.load(std::memory_order_acquire), GroupBlock::most_entries);
  return {reinterpret_cast<const Entry*>(scene.bases[place] + offset + at),
          std::min<std::size_t>(used, (room - at) / sizeof(Entry))};
}

std::vector<int> members_of(const Scene& scene, int rank, const GroupBlock& block) {
  const std::uint32_t size = peek(block.size);
  if (size == 0 || size > GroupBlock::most_ranks) return {};
  std::vector<int> members;
  for (std::uint32_t i = 0; i < size; ++i) {
    const int member = peek(block.ranks[i]);
    if (member < 0 || static_cast<std::size_t>(member) >= scene.ranks.size()) return {};
    if (contains(members, member)) return {};
    members.push_back(member);
  }
  return contains(members, rank) ? members : std::vector<int>{};
}

}  // namespace ringred
