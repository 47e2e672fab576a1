#include <algorithm>
#include <map>
#include <utility>

#include "csrc/base/text.h"
#include "csrc/queue/autopsy.h"
#include "csrc/queue/autopsy/memory.h"
#include "csrc/queue/flight_recorder.h"
#include "csrc/queue/peek.h"

namespace ringred {
namespace {

class Finder {
 public:
  explicit Finder(const Scene& scene) : scene_(scene) {}

  std::vector<PendingOperation> find() {
    for (std::size_t group = 0; group < RankBlock::most_groups; ++group) find_in(group);
    std::stable_sort(found_.begin(), found_.end(), [](const PendingOperation& left, const PendingOperation& right) {
      return left.since < right.since;
    });
    return std::move(found_);
  }

 private:
  void find_in(std::size_t group) {
    places_.clear();
    std::vector<int> members;
    for (std::size_t i = 0; i < scene_.ranks.size(); ++i) {
      const int rank = static_cast<int>(i);
      const GroupBlock* block = group_block(scene_, rank, group);
      if (block == nullptr) continue;
      if (members.empty()) members = members_of(scene_, rank, *block);
      if (!contains(members, rank)) continue;
      for (const Entry& entry : entries_of(scene_, rank, *block)) add(static_cast<std::uint32_t>(group), rank, entry);
    }
    std::sort(members.begin() + (members.empty() ? 0 : 1), members.end());  // the first is the sequencer
    for (const auto& [hash, place] : places_) sort_out(found_[place], members);
  }

  void add(std::uint32_t group, int rank, const Entry& entry) {
    const std::uint64_t submissions = entry.submissions.load(std::memory_order_acquire);
    if (submissions <= entry.completed.load(std::memory_order_acquire)) return;
    const std::array<std::uint64_t, 2> hash{peek(entry.hash[0]), peek(entry.hash[1])};
    const std::int64_t submitted = peek(entry.submitted);
    const auto since = static_cast<std::uint64_t>(std::max<std::int64_t>(submitted, 0));
    auto known = places_.find(hash);
    if (known == places_.end()) {
      // No job has more, only garbage.
      if (found_.size() >= GroupBlock::most_entries) return;
      known = places_.emplace(hash, found_.size()).first;
      PendingOperation operation;
      operation.group = group;
      operation.hash = hash;
      operation.name = peek_text(entry.name, sizeof entry.name);
      operation.what = peek_text(entry.description, sizeof entry.description);
      operation.since = since;
      found_.push_back(std::move(operation));
    }
    PendingOperation& operation = found_[known->second];
    operation.since = std::min(operation.since, since);
    if (contains(operation.submitted, rank)) return;
    operation.submitted.push_back(rank);
    if (entry.awaited.load(std::memory_order_relaxed) == 1) operation.awaiting.push_back(rank);
  }

  void sort_out(PendingOperation& operation, const std::vector<int>& members) {
    const bool agreed = may_be_agreed(operation, members);
    for (const int rank : members) {
      if (contains(operation.submitted, rank)) continue;
      const GroupBlock* block = group_block(scene_, rank, operation.group);
      if (rank_block(scene_, rank) == nullptr)
        operation.unseen.push_back(rank);
      else if (block != nullptr && block->joined.load(std::memory_order_relaxed) == 1)
        operation.joined.push_back(rank);
      else if (agreed && has_finished(operation, rank))
        operation.finished.push_back(rank);
      else
        operation.missing.push_back(rank);
    }
    for (auto list : {&operation.unseen, &operation.joined, &operation.finished, &operation.missing})
      std::sort(list->begin(), list->end());
  }

  // What a member has submitted can only be agreed on if the sequencer has logged a record that it has not consumed.
  bool may_be_agreed(const PendingOperation& operation, const std::vector<int>& members) const {
    const GroupBlock* sequencer = members.empty() ? nullptr : group_block(scene_, members[0], operation.group);
    if (sequencer == nullptr) return false;
    const std::uint64_t logged = sequencer->logged.load(std::memory_order_acquire);
    return std::any_of(operation.submitted.begin(), operation.submitted.end(), [&](int rank) {
      const GroupBlock* block = group_block(scene_, rank, operation.group);
      return block != nullptr && block->consumed.load(std::memory_order_acquire) < logged;
    });
  }

  // Whether the rank has completed an operation of this name on which all agreed after it was submitted.
  bool has_finished(const PendingOperation& operation, int rank) {
    const auto [known, is_new] = agreed_.try_emplace(rank);
    if (is_new) read_agreed(*rank_block(scene_, rank), known->second);
    const auto name = std::string(cut(operation.name, FlightRecord::name_bytes - 1));
    const auto newest = known->second.find({operation.group, name});
    return newest != known->second.end() && newest->second >= operation.since;
  }

  using Agreed = std::map<std::pair<std::uint32_t, std::string>, std::uint64_t>;

  static void read_agreed(const RankBlock& block, Agreed& agreed) {
    const FlightRange range = flights_of(block);
    FlightCopy copy;
    for (std::uint64_t sequence = range.first; sequence < range.end; ++sequence)
      if (read_flight(block, sequence, copy))
        agreed[{copy.flight.group, std::string(copy.flight.name)}] = copy.flight.agreed;
  }

  const Scene& scene_;
  std::vector<PendingOperation> found_;
  std::map<std::array<std::uint64_t, 2>, std::size_t> places_;  // of one group
  std::map<int, Agreed> agreed_;  // of each rank that was asked for: when each name was agreed on last
};

}  // namespace

std::vector<PendingOperation> pending(const Scene& scene) {
  return Finder(scene).find();
}

}  // namespace ringred
