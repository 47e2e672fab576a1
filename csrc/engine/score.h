// One rank's lanes, laid out on a buffer, and where each lane stands. A player moves the data; this says what is next.
//
// Invariant: a lane stands at its first step that has not ended, and the cursors are that step's.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "csrc/engine/cursor.h"
#include "csrc/engine/stall.h"
#include "csrc/schedule/step.h"

namespace ringred {

class Score {
 public:
  Score(int chunks, std::vector<Lane> lanes);
  Score(Score&&) = default;
  Score(const Score&) = delete;  // cursors point into spans_

  // Back to the first steps. Allocates only where the geometry is not the last one.
  void rewind(std::size_t count, std::size_t element_size);

  std::size_t lanes() const { return lanes_.size(); }
  bool finished() const { return unfinished_ == 0; }
  bool ended(std::size_t lane) const { return heads_[lane].step == lanes_[lane].size(); }

  // The step at which a lane stands that has not ended.
  const Step& step(std::size_t lane) const { return lanes_[lane][heads_[lane].step]; }
  std::size_t step_number(std::size_t lane) const { return heads_[lane].step; }
  Cursor& out(std::size_t lane) { return heads_[lane].out; }
  Cursor& in(std::size_t lane) { return heads_[lane].in; }

  // All steps of other lanes that it waits for have ended.
  bool is_ready(std::size_t lane) const {
    for (const Dependency& dependency : step(lane).after)
      if (!has_ended(dependency)) return false;
    return true;
  }

  // Where a step sends what it takes, a piece may come in only after it has gone out.
  bool in_may_move(std::size_t lane) const {
    const Head& head = heads_[lane];
    return !moves_[lane][head.step].same_chunks || head.in.travelled() < head.out.travelled();
  }

  // On to the next step once both directions are done; whether they were.
  bool pass_step(std::size_t lane) {
    Head& head = heads_[lane];
    if (!head.out.done() || !head.in.done()) return false;
    ++head.step;
    enter(lane);
    return true;
  }

  Stall stall(std::size_t lane) const;
  std::string waiting_for() const;
  std::vector<int> waiting_peers() const;  // each once
  int waiting_peer() const;                // the one that all lanes wait for, or -1

 private:
  // A step's two directions as spans_[out] .. spans_[in - 1] and spans_[in] .. spans_[end - 1].
  struct Move {
    std::size_t out = 0, in = 0, end = 0;
    bool same_chunks = false;  // out and in are the same list
  };
  struct Head {
    std::size_t step = 0;
    Cursor out, in;
  };

  void lay_out(std::size_t count, std::size_t element_size);
  void enter(std::size_t lane);
  bool has_ended(const Dependency& dependency) const {
    return heads_[static_cast<std::size_t>(dependency.lane)].step > static_cast<std::size_t>(dependency.step);
  }
  int chunk_at(const Cursor& cursor, const std::vector<int>& list) const;

  int chunks_;
  std::size_t count_ = 0;
  std::size_t element_size_ = 0;  // 0: not laid out
  std::vector<Lane> lanes_;
  std::vector<std::vector<Move>> moves_;  // by lane, then step
  std::vector<Span> spans_;
  std::vector<Head> heads_;  // by lane
  std::size_t unfinished_ = 0;
};

}  // namespace ringred
