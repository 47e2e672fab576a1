// What a lane of a player waits for, in a form that can be told to a person or asked for the peer.
//
// Invariant: made for reports only; nothing on the way of a message comes here.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "csrc/schedule/step.h"

namespace ringred {

struct Stall {
  const Step* step = nullptr;  // none: the lane has ended
  int lane = 0;
  std::size_t number = 0;  // of the step
  std::size_t steps = 0;
  std::optional<int> out_chunk = {};          // waits for a free slot to send it
  std::optional<int> in_chunk = {};           // waits for it to arrive
  std::optional<Dependency> other_lane = {};  // waits for it to end
};

// "lane 0, step 3 of 12 waits for chunk 2 from rank 1"; empty where nothing waits.
std::string describe(const Stall& stall);

// The peer cut its message elsewhere: it plays something else, or something of another length.
[[noreturn]] void fail_piece(int rank, int peer, int lane, std::size_t step, std::size_t expected, std::size_t arrived);

}  // namespace ringred
