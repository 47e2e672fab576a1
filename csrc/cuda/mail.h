// The memory through which ranks send messages: a region for each rank, which all peers map. Zeroed memory is empty.
//
//   | lines: [carrier][lane][stripe][peer] | slots: [inbox][stripe][slot] | packet slots: [inbox][stripe][slot] |
//
// A FIFO is known by (from, to, lane, stripe). Its slots lie with the taker, in the inbox that the Wiring gives to
// (from, lane). A stripe is a part of the vector that is played on its own, so one block of each rank is at each end.
//
//   1. The sender writes message number m into slot m % slots, then stores m + 1 as `tail` in the taker's line, with
//      release. (Of packets there is no tail: every packet carries the low 32 bits of m + 1.)
//   2. The taker that sees tail > m, with acquire, reads the slot.
//   3. The taker stores m + 1 as `head` in the sender's line, with release, when all its threads have read the slot.
//   4. The sender that sees head > m - slots, with acquire, may write message m.
//
// Messages are numbered over all calls, so a call begins where the last one ended: nothing is reset, and a sender may
// be calls ahead of the taker, by as many messages as there are slots. Schedules may differ from call to call: a FIFO
// has the same two ends in all of them.
//
// Packets: 8 bytes, 4 of data and 4 of flag, written by one store, so a packet whose flag is right has its data. A flag
// that was left by message m is gone when m + slots has been written, if that one is as long; to have none survive
// until its number comes round after 2^32 messages, the messages m with m % 2^30 < slots write the whole slot.
//
// Invariant: head <= tail <= head + slots; all numbers only grow. A line of this layout belongs to one pair of blocks;
// each of its words has one writer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/cuda/tape.h"
#include "csrc/schedule/step.h"

namespace ringred::cuda {

// The words of one rank for its FIFOs to and from one peer.
struct alignas(32) Line {
  std::uint64_t tail;   // messages that the peer has sent here; written by the peer
  std::uint64_t head;   // messages from here that the peer has taken; written by the peer
  std::uint64_t sent;   // between calls, for the block itself: messages to the peer
  std::uint64_t taken;  // and from the peer
};

// Which inbox a FIFO has, by to, from, lane; -1: no schedule sends there.
class Wiring {
 public:
  // For all of these schedules, which are of one size.
  explicit Wiring(const std::vector<Schedule>& schedules);

  int size() const { return size_; }
  int lanes() const { return lanes_; }
  int inboxes() const { return inboxes_; }  // of the rank that has the most
  int inbox(int from, int to, int lane) const { return numbers_[place(from, to, lane)]; }

 private:
  std::size_t place(int from, int to, int lane) const {
    return static_cast<std::size_t>((to * size_ + from) * lanes_ + lane);
  }

  int size_;
  int lanes_ = 1;
  int inboxes_ = 0;
  std::vector<int> numbers_;
};

struct MailShape {
  int size = 1;
  int lanes = 1;
  int inboxes = 0;
  int stripes = 1;  // the most of any call
  int slots = 4;
  std::size_t slot_bytes = 0;         // whole units of 16 bytes
  std::size_t packet_slot_bytes = 0;  // of data; the packets take twice as much

  constexpr std::size_t line(int carrier, int lane, int stripe, int peer) const {
    return static_cast<std::size_t>(((carrier * lanes + lane) * stripes + stripe) * size + peer) * sizeof(Line);
  }
  constexpr std::size_t first_slot() const { return line(2, 0, 0, 0); }
  constexpr std::size_t slot(int inbox, int stripe) const { return first_slot() + number(inbox, stripe) * slot_bytes; }
  constexpr std::size_t packet_slot(int inbox, int stripe) const {
    return first_slot() + number(inboxes, 0) * slot_bytes + number(inbox, stripe) * packet_slot_bytes * 2;
  }
  constexpr std::size_t bytes() const { return packet_slot(inboxes, 0); }

 private:
  constexpr std::size_t number(int inbox, int stripe) const {
    return (static_cast<std::size_t>(inbox) * static_cast<std::size_t>(stripes) + static_cast<std::size_t>(stripe)) *
           static_cast<std::size_t>(slots);
  }
};

// A usage error where the shape cannot work.
void check_shape(const MailShape& shape);

}  // namespace ringred::cuda
