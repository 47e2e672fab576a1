#include "csrc/queue/turns.h"

namespace ringred {

TurnPlayer::TurnPlayer(std::vector<GroupBlock*> blocks, int index, GroupLayout layout)
    : blocks_(std::move(blocks)),
      index_(static_cast<std::size_t>(index)),
      layout_(layout),
      slots_{std::vector<std::byte*>(blocks_.size()), layout.slot_bytes} {}

void TurnPlayer::start(Movement& movement) {
  first_ += left_;
  filled_ = reduced_ = left_ = 0;
  movement_ = &movement;
}

bool TurnPlayer::done() const {
  return left_ == movement_->turns() && movement_->knows_all();
}

TurnPlayer::Stage TurnPlayer::step() {
  if (may_copy_in() && lacking(&GroupBlock::left, room_needed()) < 0) {  // A
    movement_->copy_in(filled_, slots(filled_));
    raise(&GroupBlock::copied, ++filled_);
    return Stage::copy_in;
  }
  if (reduced_ < filled_ && lacking(&GroupBlock::copied, first_ + reduced_ + 1) < 0) {  // B
    const bool reduces = movement_->reduces();
    if (reduces) movement_->reduce(reduced_, slots(reduced_));
    raise(&GroupBlock::reduced, ++reduced_);
    if (reduces) return Stage::reduce;
  }
  const Word before = movement_->reduces() ? &GroupBlock::reduced : &GroupBlock::copied;
  if (left_ < reduced_ && lacking(before, first_ + left_ + 1) < 0) {  // C
    movement_->copy_out(left_, slots(left_));
    raise(&GroupBlock::left, ++left_);
    return Stage::copy_out;
  }
  return Stage::none;
}

TurnPlayer::Awaited TurnPlayer::awaits() const {
  if (may_copy_in()) return {lacking(&GroupBlock::left, room_needed()), left_raised};
  if (reduced_ < filled_) return {lacking(&GroupBlock::copied, first_ + reduced_ + 1), copied_raised};
  const bool reduces = movement_->reduces();
  const Word before = reduces ? &GroupBlock::reduced : &GroupBlock::copied;
  return {lacking(before, first_ + left_ + 1), reduces ? reduced_raised : copied_raised};
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

const Slots& TurnPlayer::slots(std::size_t turn) {
  for (std::size_t member = 0; member < blocks_.size(); ++member)
    slots_.of[member] = reinterpret_cast<std::byte*>(blocks_[member]) + layout_.slot(first_ + turn);
  return slots_;
}

void TurnPlayer::raise(Word word, std::size_t turns) {
  (blocks_[index_]->*word).store(first_ + turns, std::memory_order_seq_cst);
}

}  // namespace ringred
