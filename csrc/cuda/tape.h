// A schedule as the device plays it: one rank's lanes flattened into arrays of moves.
//
// A step's two directions are cut apart and put together again by what they touch: what comes in, is combined and goes
// out again is one move, which reads and writes each byte once:
//
//     steps   send a | take b   send b | take c   send c | take d
//     moves   send a   take b + send b   take c + send c   take d
//
// A move takes from up to two peers and sends to up to two, all of it the same chunks. A tape does not depend on the
// length of the vector: moves name chunks, and the kernel finds where they lie.
//
// Invariants: the messages of a FIFO, (from, to, lane), go in the order of the schedule; a move is played as a whole,
// so it may hold a slot of each FIFO that it takes from while it waits for a free one to send into: two slots suffice
// where one would not (in a ring all would hold the message that all wait for).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/schedule/step.h"

namespace ringred::cuda {

inline constexpr int most_ranks = 8;           // of one node
inline constexpr std::size_t unit_bytes = 16;  // in which vectors are moved, combined and sent
inline constexpr int most_peers = 2;           // that a move takes from, and that it sends to

// The chunks first .. end-1 of the vector.
struct Run {
  int first;
  int end;
  friend bool operator==(const Run&, const Run&) = default;
};

// Move `move` of lane `lane` of the same rank must have ended.
struct Wait {
  int lane;
  int move;  // counted within the lane
};

struct Move {
  int from[most_peers] = {-1, -1};  // -1: nobody
  int to[most_peers] = {-1, -1};
  bool reads_own = false;   // the rank's own chunks go into the result
  bool writes_own = false;  // somebody will read the result in the rank's own buffer
  bool finishes = false;    // the result is complete: an average is divided here
  bool awaited = false;     // by a move of another lane
  int first_run = 0, end_run = 0;
  int first_wait = 0, end_wait = 0;
};

struct Tape {
  int rank = 0;
  int size = 0;
  int chunks = 0;
  int widest = 0;               // chunks of the longest message of any rank
  std::vector<int> lane_begin;  // lane l is moves[lane_begin[l]] .. moves[lane_begin[l + 1] - 1]
  std::vector<Move> moves;
  std::vector<Run> runs;
  std::vector<Wait> waits;

  int lanes() const { return static_cast<int>(lane_begin.size()) - 1; }
};

// What a call reads and writes, in chunks, of the rank's own vector and of messages; a message is written by the rank
// that sends it and read by the one that takes it. From it follows the floor of a call.
struct Traffic {
  int reads = 0;
  int writes = 0;
};
Traffic traffic_of(const Tape& tape);

// One for each rank. A schedule that is wrong, or of more than most_ranks ranks, is a usage error.
std::vector<Tape> make_tapes(const Schedule& schedule);

}  // namespace ringred::cuda
