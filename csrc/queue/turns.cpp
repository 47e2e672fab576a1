#include "csrc/queue/turns.h"

#include <algorithm>

#include "csrc/queue/mirrors.h"
#include "csrc/queue/nodes.h"

namespace ringred {

TurnPlayer::TurnPlayer(std::vector<GroupBlock*> blocks, int index, GroupLayout layout, const Nodes& nodes,
                       Mirrors* mirrors)
    : blocks_(std::move(blocks)),
      index_(static_cast<std::size_t>(index)),
      layout_(layout),
      nodes_(nodes),
      mirrors_(mirrors),
      slots_{std::vector<std::byte*>(blocks_.size()), layout.slot_bytes} {}

void TurnPlayer::start(Movement& movement) {
  first_ += left_;
  filled_ = combined_ = reduced_ = left_ = 0;
  movement_ = &movement;
  local_events_ = movement.local_events();
}

bool TurnPlayer::done() const {
  return left_ == movement_->turns() && movement_->knows_all() &&
         (!movement_->copies_out_for_neighbours() || lacking_here(&GroupBlock::left, first_ + left_) < 0);
}

Stage TurnPlayer::step() {
  if (may_copy_in() && lacking_room() < 0 && slot_is_free()) {  // A
    movement_->copy_in(filled_, slots(filled_));
    raise(&GroupBlock::copied, ++filled_);
    tell(Stage::copy_in, filled_ - 1);
    return Stage::copy_in;
  }
  if (may_combine() && lacking_neighbour() < 0) {  // B1
    if (movement_->works()) movement_->combine(combined_, slots(combined_));
    raise(&GroupBlock::combined, ++combined_);
    tell(Stage::combine, combined_ - 1);
    return Stage::combine;
  }
  if (may_reduce() && lacking_input() < 0 && play()) {  // B2
    ++reduced_;
    if (movement_->reduces()) {
      if (movement_->works()) movement_->reduce(reduced_ - 1, slots(reduced_ - 1));
      raise(&GroupBlock::reduced, reduced_);
      tell(Stage::reduce, reduced_ - 1);
      return Stage::reduce;
    }
  }
  if (left_ < reduced_ && lacking_result() < 0) {  // C
    movement_->copy_out(left_, slots(left_));
    raise(&GroupBlock::left, ++left_);
    return Stage::copy_out;
  }
  return Stage::none;
}

TurnPlayer::Awaited TurnPlayer::awaits() const {
  if (left_ == movement_->turns()) return {lacking_here(&GroupBlock::left, first_ + left_), left_raised};
  if (may_copy_in()) {
    const int member = lacking_room();
    return member < 0 && !slot_is_free() ? Awaited{static_cast<int>(index_), left_raised}
                                         : Awaited{member, left_raised};
  }
  if (may_combine()) return {lacking_neighbour(), copied_raised};
  if (may_reduce()) {
    const std::vector<int> far = far_awaited();
    if (!far.empty()) return {far.front(), Event{}};
    return {lacking_input(), movement_->combines() ? combined_raised : copied_raised};
  }
  return {lacking_result(), movement_->reduces() ? reduced_raised : copied_raised};
}

bool TurnPlayer::awaits(int member) const {
  const std::vector<int> far = far_awaited();
  return awaits().member == member || std::find(far.begin(), far.end(), member) != far.end();
}

// The members of other nodes for whose messages the schedule waits that is played.
std::vector<int> TurnPlayer::far_awaited() const {
  const bool is_played = may_reduce() && movement_->plays() && movement_->works();
  return is_played ? movement_->waits_for(first_ + reduced_) : std::vector<int>{};
}

// Whether nothing is left to play before the first turn that has not been reduced.
bool TurnPlayer::play() {
  if (!movement_->plays() || !movement_->works()) return true;
  const bool done = movement_->play(reduced_, slots(reduced_));
  if (const std::size_t next = reduced_ + 1; next < combined_) movement_->play(next, slots(next));
  return done;
}

// Who has nothing to do in a turn of its own waits for the results of those who have.
bool TurnPlayer::waits_for_relay() const {
  return movement_->keeps_results() && !movement_->works() && movement_->turns() == 1 && left_ < reduced_ &&
         lacking_result() >= 0;
}

// Turns after the first can be copied in only when their number is known.
std::size_t TurnPlayer::limit() const {
  return movement_->knows_all() ? movement_->turns() : 1;
}

int TurnPlayer::lacking(Word word, std::uint64_t count) const {
  for (std::size_t member = 0; member < blocks_.size(); ++member)
    if ((blocks_[member]->*word).load(std::memory_order_seq_cst) < count) return static_cast<int>(member);
  return -1;
}

int TurnPlayer::lacking_here(Word word, std::uint64_t count) const {
  for (const int member : nodes_.members(nodes_.of(static_cast<int>(index_))))
    if ((blocks_[static_cast<std::size_t>(member)]->*word).load(std::memory_order_seq_cst) < count) return member;
  return -1;
}

int TurnPlayer::lacking_room() const {
  const std::uint64_t count = room_needed();
  for (int node = 0; node < nodes_.count() && !movement_->plays(); ++node) {
    const int first = nodes_.members(node).front();
    if (node != nodes_.of(static_cast<int>(index_)) &&
        blocks_[static_cast<std::size_t>(first)]->left.load(std::memory_order_seq_cst) < count)
      return first;
  }
  return lacking_here(&GroupBlock::left, count);
}

int TurnPlayer::lacking_neighbour() const {
  return movement_->works() ? lacking_here(&GroupBlock::copied, first_ + combined_ + 1) : -1;
}

int TurnPlayer::lacking_input() const {
  if (!movement_->works() || movement_->plays()) return -1;
  const std::uint64_t count = first_ + reduced_ + 1;
  if (!movement_->keeps_results()) return lacking(before_reduce(), count);
  for (const int member : movement_->awaited())
    if ((blocks_[static_cast<std::size_t>(member)]->*before_reduce()).load(std::memory_order_seq_cst) < count)
      return member;
  return lacking_here(before_reduce(), count);
}

int TurnPlayer::lacking_result() const {
  const std::uint64_t count = first_ + left_ + 1;
  return movement_->keeps_results() ? lacking_here(before_copy_out(), count) : lacking(before_copy_out(), count);
}

bool TurnPlayer::slot_is_free() const {
  return mirrors_ == nullptr || !mirrors_->is_sending(first_ + filled_);
}

const Slots& TurnPlayer::slots(std::size_t turn) {
  for (std::size_t member = 0; member < blocks_.size(); ++member)
    slots_.of[member] = reinterpret_cast<std::byte*>(blocks_[member]) + layout_.slot(first_ + turn);
  slots_.turn = first_ + turn;
  return slots_;
}

void TurnPlayer::raise(Word word, std::size_t turns) {
  (blocks_[index_]->*word).store(first_ + turns, std::memory_order_seq_cst);
}

// The word goes out with the last stretch, or with whatever is told next.
void TurnPlayer::tell(Stage stage, std::size_t turn) {
  if (mirrors_ == nullptr) return;
  const std::size_t slot = layout_.slot(first_ + turn);
  for (int node = 0; node < nodes_.count(); ++node) {
    if (node == nodes_.of(static_cast<int>(index_))) continue;
    stretches_.clear();
    movement_->needed(stage, turn, node, stretches_);
    for (const Stretch& stretch : stretches_)
      mirrors_->send(node, slot + stretch.offset, stretch.bytes, &stretch == &stretches_.back());
  }
}

}  // namespace ringred
