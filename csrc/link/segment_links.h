// Links between processes of one node: FIFOs in the ranks' shared segments.
//
// Invariant: a FIFO lies in its sender's segment, at an offset that follows from the taker and the lane, and its sender
// commits its pages before it writes. Fresh pages are zero, which is an empty FIFO.
#pragma once

#include <cstddef>
#include <vector>

#include "csrc/base/wait.h"
#include "csrc/link/fifo.h"
#include "csrc/link/link.h"

namespace ringred {

class SegmentLinks {
 public:
  static constexpr int lanes = 4;          // what double_tree needs, the most of all algorithms
  static constexpr std::size_t slots = 4;  // two are written and read, two absorb a rank's delay; all stay in cache

  // What each rank's segment holds for its sending ends.
  static std::size_t memory_bytes(int size, std::size_t slot_bytes) {
    return static_cast<std::size_t>(size * lanes) * Fifo::memory_bytes(slots, slot_bytes);
  }

  // `places` is where each rank's FIFOs begin.
  SegmentLinks(int rank, const std::vector<std::byte*>& places, std::size_t slot_bytes, Waiter& waiter)
      : slot_bytes_(slot_bytes), waiter_(waiter) {
    for (std::size_t peer = 0; peer < places.size(); ++peer)
      for (int lane = 0; lane < lanes; ++lane) {
        to_.push_back(fifo(places[static_cast<std::size_t>(rank)], static_cast<int>(peer), lane));
        from_.push_back(fifo(places[peer], rank, lane));
      }
  }

  Fifo& fifo_to(int peer, int lane) { return to_[number(peer, lane)]; }
  Fifo& fifo_from(int peer, int lane) { return from_[number(peer, lane)]; }
  std::size_t slot_bytes() const { return slot_bytes_; }
  void notify(int peer) { waiter_.wake_sleeper(peer); }

 private:
  static std::size_t number(int peer, int lane) { return static_cast<std::size_t>(peer * lanes + lane); }

  Fifo fifo(std::byte* place, int to, int lane) const {
    return Fifo(place + number(to, lane) * Fifo::memory_bytes(slots, slot_bytes_), slots, slot_bytes_);
  }

  const std::size_t slot_bytes_;
  Waiter& waiter_;
  std::vector<Fifo> to_, from_;
};

static_assert(Links<SegmentLinks>);

}  // namespace ringred
