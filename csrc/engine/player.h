// Plays one rank's lanes over any links, a piece at a time, and never waits: whoever calls it decides how.
//
// Invariants: data that a peer may still need is copied into a slot before it is overwritten (links copy, so the one
// case is a step that sends and takes the same chunks: its `in` stays behind its `out`). Two values are combined with
// the lower rank's on the left, so both ends of a swap get the same bits. advance() allocates nothing and locks
// nothing.
#pragma once

#include <cstddef>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/engine/score.h"
#include "csrc/link/link.h"
#include "csrc/reduce/reduce.h"

namespace ringred {

// What is reduced, in place. `combine` is called with two inputs, one output and divisor 1.
struct Work {
  std::byte* data = nullptr;
  std::size_t element_size = 1;
  std::size_t count = 0;  // elements
  ReduceKernel combine = nullptr;
};

template <Links L>
class Player {
 public:
  // `links` outlives the player. All ranks play the same schedule, of `chunks` chunks.
  Player(L& links, int rank, int chunks, std::vector<Lane> lanes)
      : links_(links), rank_(rank), score_(chunks, std::move(lanes)) {}

  // Begins anew, with the same or another buffer. Allocates only where length or element size are not the last ones.
  void start(const Work& work);

  // Whatever progress is possible now, on every lane; true when all is done.
  bool advance();

  // Whether the last advance() made any progress; if it did not, the caller may wait for a peer.
  bool moved() const { return moved_; }
  bool finished() const { return score_.finished(); }

  // For whoever waits, between calls of advance(): what each lane waits for, and the one peer that all wait for, or -1.
  std::string waiting_for() const { return score_.waiting_for(); }
  int waiting_peer() const { return score_.waiting_peer(); }
  std::vector<int> waiting_peers() const { return score_.waiting_peers(); }  // all of them

 private:
  bool poll(std::size_t lane);
  bool send_piece(std::size_t lane);
  bool take_piece(std::size_t lane);
  void store_piece(const Step& step, std::byte* mine, const std::byte* theirs, std::size_t bytes) const;

  L& links_;
  int rank_;
  Score score_;
  Work work_;
  std::size_t piece_bytes_ = 0;  // whole elements that fit into a slot
  bool moved_ = false;
};

template <Links L>
void Player<L>::start(const Work& work) {
  const std::size_t slot_bytes = links_.slot_bytes();
  if (work.element_size == 0 || work.element_size > slot_bytes)
    fail_usage("a slot must hold one element or more: elements have " + std::to_string(work.element_size) +
               " bytes, slots " + std::to_string(slot_bytes));
  work_ = work;
  piece_bytes_ = slot_bytes / work.element_size * work.element_size;
  score_.rewind(work.count, work.element_size);
}

template <Links L>
bool Player<L>::advance() {
  moved_ = false;
  for (bool again = true; again && !score_.finished();) {
    again = false;
    for (std::size_t lane = 0; lane < score_.lanes(); ++lane)
      while (!score_.ended(lane) && poll(lane)) again = true;
    moved_ |= again;
  }
  return score_.finished();
}

// A piece in each direction, if it can be; true where anything moved.
template <Links L>
bool Player<L>::poll(std::size_t lane) {
  if (!score_.is_ready(lane)) return false;
  bool moved = !score_.out(lane).done() && send_piece(lane);
  if (!score_.in(lane).done() && score_.in_may_move(lane)) moved |= take_piece(lane);
  return score_.pass_step(lane) || moved;
}

template <Links L>
bool Player<L>::send_piece(std::size_t lane) {
  const Step& step = score_.step(lane);
  Cursor& cursor = score_.out(lane);
  auto&& fifo = links_.fifo_to(step.to, static_cast<int>(lane));
  std::byte* const slot = fifo.free_slot();
  if (slot == nullptr) return false;
  const std::size_t bytes = cursor.piece(piece_bytes_);
  std::memcpy(slot, work_.data + cursor.at(), bytes);
  fifo.publish(bytes);
  links_.notify(step.to);
  cursor.pass(bytes);
  return true;
}

template <Links L>
bool Player<L>::take_piece(std::size_t lane) {
  const Step& step = score_.step(lane);
  Cursor& cursor = score_.in(lane);
  auto&& fifo = links_.fifo_from(step.from, static_cast<int>(lane));
  std::size_t arrived = 0;
  const std::byte* const slot = fifo.full_slot(arrived);
  if (slot == nullptr) return false;
  const std::size_t bytes = cursor.piece(piece_bytes_);
  if (arrived != bytes) fail_piece(rank_, step.from, static_cast<int>(lane), score_.step_number(lane), bytes, arrived);
  store_piece(step, work_.data + cursor.at(), slot, bytes);
  fifo.release();
  links_.notify(step.from);
  cursor.pass(bytes);
  return true;
}

template <Links L>
void Player<L>::store_piece(const Step& step, std::byte* mine, const std::byte* theirs, std::size_t bytes) const {
  if (step.act == Act::receive) {
    std::memcpy(mine, theirs, bytes);
    return;
  }
  const void* const theirs_first[2] = {theirs, mine};
  const void* const mine_first[2] = {mine, theirs};
  void* const outputs[1] = {mine};
  work_.combine(step.from < rank_ ? theirs_first : mine_first, 2, outputs, 1, bytes / work_.element_size, 1);
}

}  // namespace ringred
