// The ranks' shared memory, read with distrust: what is null or empty here makes no sense there, or is not there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "csrc/queue/autopsy.h"

namespace ringred {

const RankBlock* rank_block(const Scene& scene, int rank);

const GroupBlock* group_block(const Scene& scene, int rank, std::size_t group);

// The names of a group_block().
std::span<const Entry> entries_of(const Scene& scene, int rank, const GroupBlock& block);

// The members in their order, or none where the block makes no sense or does not count its own rank in.
std::vector<int> members_of(const Scene& scene, int rank, const GroupBlock& block);

inline bool contains(const std::vector<int>& ranks, int rank) {
  return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
}

}  // namespace ringred
