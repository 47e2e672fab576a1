#include "csrc/queue/opening.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "csrc/base/differences.h"
#include "csrc/base/text.h"
#include "csrc/queue/exchange.h"
#include "csrc/queue/transfers.h"
#include "csrc/queue/two_shots.h"

namespace ringred {
namespace {

bool moves_nothing(const Batch& batch) {
  return std::all_of(batch.runs.begin(), batch.runs.end(), [](const Run& run) { return run.count == 0; });
}

int root_of(const Batch& batch) {
  return batch.kind == CallKind::broadcast ? batch.mine.front()->request.root : -1;
}

}  // namespace

Opening::Opening(const Batch& batch, std::vector<GroupBlock*> blocks, GroupLayout layout, std::uint64_t position)
    : blocks_(std::move(blocks)),
      layout_(layout),
      position_(position),
      nodes_(*batch.nodes),
      index_(batch.index),
      root_(root_of(batch)),
      broadcast_bytes_(root_ < 0 || batch.runs.empty() ? 0 : batch.runs.front().count),
      data_(data_of(batch)),
      nothing_(moves_nothing(batch)),
      location_(batch.mine.front()->request.location),
      bases_(batch.bases) {
  for (int node = 0; node < nodes_.count(); ++node)
    if (node != nodes_.of(index_)) awaited_.push_back(first_of(node));
  if (data_)
    for (const int member : data_->awaited())
      if (std::find(awaited_.begin(), awaited_.end(), member) == awaited_.end()) awaited_.push_back(member);
}

// What moves in one turn, behind the heads.
std::unique_ptr<Movement> Opening::data_of(const Batch& batch) const {
  constexpr std::size_t long_broadcast = std::size_t{64} << 10;  // goes in turns, of which two are under way
  if (batch.runs.size() != 1 || batch.runs.front().count == 0) return nullptr;
  const Run& run = batch.runs.front();
  Batch behind = batch;
  behind.slot_bytes -= head_bytes;
  if (batch.kind == CallKind::broadcast && run.count <= std::min(long_broadcast, behind.slot_bytes))
    return std::make_unique<BroadcastMovement>(behind);
  const bool asked = batch.way && (!schedule_of(*batch.way) || schedule_of(batch, run));
  if (batch.kind != CallKind::allreduce || asked) return nullptr;
  auto sums = std::make_unique<TwoShotMovement>(behind, run);
  return sums->keeps_results() && sums->turns() == 1 ? std::move(sums) : nullptr;
}

void Opening::copy_in(std::size_t turn, const Slots& slots) {
  std::memcpy(slots.of[at(index_)] + location_at, &location_, sizeof location_);
  if (data_) data_->copy_in(turn, behind_heads(slots));
}

void Opening::combine(std::size_t turn, const Slots& slots) {
  const bool agrees = node_agrees();
  if (is_first()) {
    const Head head{agrees ? 1u : 0u, fingerprint_of(index_)};
    std::memcpy(slots.of[at(index_)], &head, sizeof head);
  }
  if (!data_ || !agrees) return;
  if (root_ < 0) return data_->combine(turn, behind_heads(slots));
  if (sends_for_root() && root_ != index_)
    std::memcpy(slots.of[at(index_)] + head_bytes, slots.of[at(root_)] + head_bytes, broadcast_bytes_);
}

void Opening::reduce(std::size_t turn, const Slots& slots) {
  if (data_ && root_ < 0 && heads_agree(slots)) data_->reduce(turn, behind_heads(slots));
}

void Opening::copy_out(std::size_t turn, const Slots& slots) {
  agreed_ = heads_agree(slots);
  if (agreed_ && !was_all()) find_arrays(slots);
  if (!agreed_ || !data_) return;
  Slots behind = behind_heads(slots);
  if (root_ >= 0 && root_ != index_) behind.of[at(root_)] = behind.of[at(first_of(nodes_.of(root_)))];
  data_->copy_out(turn, behind);
}

void Opening::needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const {
  if (stage != Stage::combine) return;
  if (is_first()) append(stretches, {0, head_bytes + (sends_for_root() ? broadcast_bytes_ : 0)});
  if (!data_ || root_ >= 0) return;
  std::vector<Stretch> behind;
  data_->needed(stage, turn, node, behind);
  for (const Stretch& stretch : behind) append(stretches, {head_bytes + stretch.offset, stretch.bytes});
}

std::uint64_t Opening::fingerprint_of(int member) const {
  GroupBlock& block = *blocks_[at(member)];
  return layout_.entries_of(block)[layout_.ring_of(block)[position_ % GroupBlock::most_entries]].fingerprint;
}

bool Opening::node_agrees() const {
  const std::vector<int>& members = nodes_.members(nodes_.of(index_));
  return std::all_of(members.begin(), members.end(),
                     [&](int member) { return fingerprint_of(member) == fingerprint_of(index_); });
}

bool Opening::heads_agree(const Slots& slots) const {
  for (int node = 0; node < nodes_.count(); ++node) {
    Head head;
    std::memcpy(&head, slots.of[at(first_of(node))], sizeof head);
    if (head.agrees == 0 || head.fingerprint != fingerprint_of(index_)) return false;
  }
  return true;
}

void Opening::find_arrays(const Slots& slots) {
  arrays_.assign(blocks_.size(), nullptr);
  for (const int member : nodes_.members(nodes_.of(index_))) {
    std::size_t location = 0;
    std::memcpy(&location, slots.of[at(member)] + location_at, sizeof location);
    if (location == 0) return arrays_.clear();
    arrays_[at(member)] = bases_[at(member)] + location - 1;
  }
}

Slots Opening::behind_heads(const Slots& slots) {
  Slots behind{slots.of, slots.bytes - head_bytes};
  for (std::byte*& slot : behind.of) slot += head_bytes;
  return behind;
}

Disagreement::Disagreement(const Batch& batch, const Entry& mine, std::vector<int> ranks)
    : mine_(mine),
      operation_(*batch.mine.front()),
      index_(static_cast<std::size_t>(batch.index)),
      ranks_(std::move(ranks)) {}

void Disagreement::copy_in(std::size_t, const Slots& slots) {
  std::memcpy(slots.of[index_], mine_.description, sizeof mine_.description);
}

void Disagreement::copy_out(std::size_t, const Slots& slots) {
  Differences differences;
  for (std::size_t member = 0; member < ranks_.size(); ++member) {
    const char* description = reinterpret_cast<const char*>(slots.of[member]);
    differences.add(ranks_[member], std::string(cut(description, sizeof mine_.description - 1)));
  }
  operation_.problem.emplace(ErrorKind::mismatch, differences.of_calls());
}

void Disagreement::needed(Stage stage, std::size_t, int, std::vector<Stretch>& stretches) const {
  if (stage == Stage::copy_in) stretches.push_back({0, sizeof mine_.description});
}

}  // namespace ringred
