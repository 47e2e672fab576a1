#include "csrc/queue/opening.h"

#include <algorithm>
#include <utility>

#include "csrc/base/differences.h"
#include "csrc/queue/reductions.h"
#include "csrc/queue/transfers.h"

namespace ringred {
namespace {

// What moves in one turn, in which nobody needs to know anything of others before.
std::unique_ptr<Movement> whole_of(const Batch& batch) {
  if (batch.runs.size() != 1 || batch.runs.front().count == 0) return nullptr;
  const Run& run = batch.runs.front();
  if (batch.kind == CallKind::allreduce && OneShotMovement::fits(batch, run))
    return std::make_unique<OneShotMovement>(batch, run);
  if (batch.kind == CallKind::broadcast && run.count <= std::min(batch.one_shot_bytes, batch.slot_bytes))
    return std::make_unique<BroadcastMovement>(batch);
  return nullptr;
}

bool moves_nothing(const Batch& batch) {
  return std::all_of(batch.runs.begin(), batch.runs.end(), [](const Run& run) { return run.count == 0; });
}

}  // namespace

Opening::Opening(const Batch& batch, std::vector<GroupBlock*> blocks, GroupLayout layout, std::uint64_t position)
    : blocks_(std::move(blocks)),
      layout_(layout),
      position_(position),
      whole_(whole_of(batch)),
      nothing_(moves_nothing(batch)) {}

void Opening::copy_in(std::size_t turn, const Slots& slots) {
  if (whole_) whole_->copy_in(turn, slots);
}

void Opening::needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const {
  if (whole_) whole_->needed(stage, turn, node, stretches);
}

void Opening::copy_out(std::size_t turn, const Slots& slots) {
  const std::uint64_t expected = entry_of(0).fingerprint;
  for (std::size_t member = 1; member < blocks_.size(); ++member)
    if (entry_of(member).fingerprint != expected) {
      problem_ = mismatch_text();
      return;
    }
  if (whole_) whole_->copy_out(turn, slots);
}

const Entry& Opening::entry_of(std::size_t member) const {
  GroupBlock& block = *blocks_[member];
  return layout_.entries_of(block)[layout_.ring_of(block)[position_ % GroupBlock::most_entries]];
}

std::string Opening::mismatch_text() const {
  Differences differences;
  for (std::size_t member = 0; member < blocks_.size(); ++member)
    differences.add(blocks_.front()->ranks[member], entry_of(member).description);
  return "All ranks must make the same call: " + differences.text("called") +
         ". Nothing was changed, and the next call works.";
}

}  // namespace ringred
