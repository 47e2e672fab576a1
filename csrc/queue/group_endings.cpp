// How operations end that cannot be completed: peers that have gone, deadlines, shutdown.
#include <algorithm>
#include <cstdio>

#include "csrc/base/lifeline.h"
#include "csrc/base/text.h"
#include "csrc/queue/group.h"

namespace ringred {
namespace {

constexpr std::int64_t long_call = 500'000'000;

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g s", seconds);
  return text;
}

}  // namespace

void Group::close(const Error& error, const std::string& reason) {
  std::vector<std::shared_ptr<Operation>> failing;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    for (const auto& operation : in_flight_)
      if (operation) failing.push_back(operation);
    closed_.emplace(error);  // last: where memory was lacking, this is tried again
  }
  if (!reason.empty() && mine_.departure.state.load(std::memory_order_relaxed) == Departure::present) {
    store_text(mine_.departure.reason, reason);
    mine_.departure.state.store(playing_ ? Departure::broken : Departure::left, std::memory_order_seq_cst);
    wake_others(departed);
  }
  if (mirrors_) mirrors_->depart();
  over_ = true;
  playing_ = false;
  mine_in_batch_.clear();
  mine_as_pointers_.clear();
  movements_.clear();
  opening_.reset();
  for (const auto& operation : failing)
    complete(operation, Error(error.kind(), "'" + operation->request.name + "', " + operation->request.describe() +
                                                ", cannot be completed: " + error.what()));
}

void Group::look(std::int64_t now) {
  if (in_flight_count_.load(std::memory_order_relaxed) == 0) return;
  if (mirrors_) wake_others(departed);  // a neighbour that has nothing to do may keep the mirror of one that has gone
  // Who is late in a call that takes long is seen by who is not: the others hear of them.
  if (mirrors_ && in_step() && now - oldest_in_flight() > long_call) mirrors_->tell_late();
  if (mirrors_ && !in_step()) tell_waiting(now);
  look_at_members();
  look_at_deadline(now);
}

// Other nodes need not know who waits for what before somebody asks who is missing.
void Group::tell_waiting(std::int64_t now) {
  const double limit = setup_.settings->timeout_seconds * 1e9 / 4;
  const std::int64_t long_wait = limit > 0 ? std::min(long_call, static_cast<std::int64_t>(limit)) : long_call;
  std::vector<std::uint32_t> numbers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& operation : in_flight_)
      if (operation && now - operation->submitted > long_wait && !std::exchange(operation->is_known_to_wait, true))
        numbers.push_back(operation->number);
  }
  mirrors_->tell_waiting(numbers);
}

// Whether what runs or waits here can go on without a member that takes no further part: it cannot if the step that
// comes next waits for that member, or for one of another node whose mirror that member keeps here; or if nothing is
// agreed on that could still run. To be called after the member was seen to have left: what it did before is visible
// then. What it has consumed and this member does not know of yet is on its way, from the sequencer.
bool Group::needs(std::size_t member) const {
  const int one = static_cast<int>(member), here = nodes_.of(setup_.index);
  if (!playing_)
    return next_record() == nullptr && setup_.blocks[member]->consumed.load(std::memory_order_seq_cst) <=
                                           mine_.consumed.load(std::memory_order_relaxed);
  const int awaited = player_->awaits().member;
  return player_->awaits(one) || (awaited >= 0 && nodes_.of(awaited) != here && nodes_.keeper(awaited, here) == one);
}

void Group::look_at_members() {
  for (std::size_t member = 0; member < setup_.blocks.size(); ++member) {
    if (static_cast<int>(member) == setup_.index) continue;
    const Departure& departure = setup_.blocks[member]->departure;
    const bool ended = has_ended(setup_.lifelines[member]);
    const std::uint32_t state = departure.state.load(std::memory_order_seq_cst);
    const bool gone = state == Departure::broken || ((ended || state == Departure::left) && needs(member));
    if (!gone || in_flight_count_.load(std::memory_order_relaxed) == 0) continue;
    const std::string reason = state == Departure::present
                                   ? end_of(member)
                                   : "rank " + std::to_string(setup_.ranks[member]) + " " + departure.reason;
    return close(Error(ErrorKind::peer_lost, reason + "." + restart_remedy), "broke off (" + reason + ")");
  }
}

// What is known of the end of a member's process: its first failure, if it could still write it.
std::string Group::end_of(std::size_t member) const {
  const RankBlock& block = *setup_.members[member];
  std::string text = "the process of rank " + std::to_string(setup_.ranks[member]) + " ended";
  if (block.failed.load(std::memory_order_acquire) == 0) return text;
  const std::string failure(cut(block.failure, 400));
  text += ", after " + failure.substr(0, failure.find('\n'));  // the first line sums it up
  while (text.ends_with('.')) text.pop_back();
  return text;
}

void Group::look_at_deadline(std::int64_t now) {
  const double limit = setup_.settings->timeout_seconds;
  if (limit <= 0) return;
  std::shared_ptr<Operation> late;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& operation : in_flight_)
      if (operation && static_cast<double>(now - operation->submitted) > limit * 1e9) late = operation;
  }
  if (!late) return;
  const std::string what = in_step() ? "call " + std::to_string(calls_ + 1) + ", " + late->request.describe() + ","
                                     : "'" + late->request.name + "'";
  const std::string reason = what + " has been waiting for " + missing(*late) +
                             " for more than RINGRED_TIMEOUT_SECONDS=" + seconds_text(limit);
  // A member whose own deadline came a moment earlier has given its operation up by now and looks as if it had never
  // submitted it. It has said before why it left: then that is the reason here, too.
  look_at_members();
  close(Error(ErrorKind::timeout, reason + "." + restart_remedy), "broke off (" + reason + ")");
}

// Whether a member has submitted an operation of the same name; in step, whether it has come to the same turn.
bool Group::has_come(std::size_t member, const Operation& operation) const {
  GroupBlock& block = *setup_.blocks[member];
  if (in_step() && playing_) return block.copied.load(std::memory_order_seq_cst) > player_->turn();
  const Entry& mine = entry(operation.number);
  const Entry* entries = layout_.entries_of(block);
  const std::uint32_t used = block.entries.load(std::memory_order_acquire);
  return std::any_of(entries, entries + used, [&](const Entry& other) {
    return other.submissions.load(std::memory_order_acquire) > other.completed.load(std::memory_order_acquire) &&
           other.hash[0] == mine.hash[0] && other.hash[1] == mine.hash[1];
  });
}

// The members that an operation waits for.
std::string Group::missing(const Operation& operation) const {
  std::string text;
  for (std::size_t member = 0; member < setup_.blocks.size(); ++member)
    if (!has_come(member, operation))
      text += (text.empty() ? "rank " : ", rank ") + std::to_string(setup_.ranks[member]);
  if (!text.empty()) return text;
  const int awaited = playing_ ? player_->awaits().member : -1;
  if (awaited < 0) return "its turn";
  const bool far = nodes_.of(awaited) != nodes_.of(setup_.index);
  return "data of rank " + std::to_string(setup_.ranks[static_cast<std::size_t>(awaited)]) +
         (far ? " on another node (look at that rank, and at the network between the nodes)" : "");
}

}  // namespace ringred
