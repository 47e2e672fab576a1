#include "csrc/queue/stall_watch.h"

#include <algorithm>
#include <array>
#include <map>

#include "csrc/base/text.h"
#include "csrc/queue/bell.h"

namespace ringred {
namespace {

// Whether a rank that `one` misses sleeps until `other` is over.
bool sleeps_for(const PendingOperation& one, const PendingOperation& other) {
  return std::any_of(one.missing.begin(), one.missing.end(), [&](int rank) {
    return std::find(other.awaiting.begin(), other.awaiting.end(), rank) != other.awaiting.end();
  });
}

}  // namespace

void StallWatch::look(std::int64_t now, const std::vector<std::shared_ptr<Group>>& groups) {
  std::int64_t oldest = 0;
  for (const auto& group : groups) {
    const std::int64_t one = group->oldest_in_flight();
    if (one == 0) continue;
    if (now - one > confused_after) group->wake_reader();
    if (oldest == 0 || one < oldest) oldest = one;
  }
  if (oldest != 0 && now - oldest > confused_after) fail_confused_names(groups);
  const auto limit = static_cast<std::int64_t>(setup_.stall_seconds * 1e9);
  if (oldest != 0 && limit > 0 && oldest != reported_ && now - std::max(oldest, wished_) > limit) {
    reported_ = oldest;
    wished_ = now;
    wish_for_report(now);
  }
  if (reporting()) finish_report(now);
}

// The first rank of the node reports, for all of it, as long as it is there.
void StallWatch::wish_for_report(std::int64_t now) {
  RankBlock& reporter =
      **std::find_if(setup_.ranks.begin(), setup_.ranks.end(), [](auto* one) { return one != nullptr; });
  if (reporter.magic.load(std::memory_order_acquire) != RankBlock::magic_value) return start_report(now);
  reporter.reports.fetch_add(1, std::memory_order_seq_cst);
  ring(reporter.bell);
}

// Two threads of different ranks sleep until an operation of one name is over, each in a process set in which the other
// has not submitted it: neither will be. (Without a thread that sleeps the rank might still come to submit the other.
// Names that ringred gave are the same in all sets.)
void StallWatch::fail_confused_names(const std::vector<std::shared_ptr<Group>>& groups) {
  const auto has_several = [](const RankBlock* rank) {
    return rank != nullptr && std::any_of(rank->groups + 1, rank->groups + RankBlock::most_groups,
                                          [](const auto& group) { return group.load(std::memory_order_relaxed) != 0; });
  };
  if (std::none_of(setup_.ranks.begin(), setup_.ranks.end(), has_several)) return;
  const std::vector<PendingOperation> all = pending(setup_.scene);
  std::map<std::array<std::uint64_t, 2>, std::vector<const PendingOperation*>> by_name;
  for (const PendingOperation& one : all)
    if (!one.name.starts_with(Group::unnamed_prefix)) by_name[one.hash].push_back(&one);
  for (const auto& [hash, namesakes] : by_name)
    for (const PendingOperation* one : namesakes)
      for (const PendingOperation* other : namesakes) {
        const auto ours = std::find_if(groups.begin(), groups.end(),
                                       [&](const auto& group) { return group->number() == one->group; });
        if (one == other || ours == groups.end() || !sleeps_for(*one, *other) || !sleeps_for(*other, *one)) continue;
        (*ours)->fail_name({{hash[0], hash[1]}},
                           "All ranks must submit an operation to the same process set, and for '" + one->name +
                               "' they differ: " + list_ranks(one->submitted) + " submitted it to process set " +
                               std::to_string(one->group) + "; " + list_ranks(other->submitted) + " to process set " +
                               std::to_string(other->group) + ". Nothing was changed, and the next operation works.");
      }
}

// All ranks that wait wish for a report, one after the other: one is enough for the time that is called a stall.
void StallWatch::start_report(std::int64_t now) {
  const auto limit = static_cast<std::int64_t>(setup_.stall_seconds * 1e9);
  if (reporting() || (started_ != 0 && now - started_ < limit)) return;
  started_ = now;
  deadline_ = now + answer_time;
  requests_.clear();
  for (RankBlock* rank : setup_.ranks) {
    requests_.push_back(rank == nullptr ? 0 : request_stacks(*rank));
    if (rank != nullptr) ring(rank->bell);
  }
}

void StallWatch::finish_report(std::int64_t now) {
  const bool all = std::equal(
      setup_.ranks.begin(), setup_.ranks.end(), requests_.begin(),
      [](const RankBlock* rank, std::uint32_t number) { return rank == nullptr || answered(*rank, number); });
  if (!all && now < deadline_) return;
  deadline_ = 0;
  if (setup_.report) setup_.report(autopsy(setup_.scene, {.requests = requests_}));
}

}  // namespace ringred
