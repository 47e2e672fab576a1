// Figures by which what travels between nodes is cut. The queue's movements go by them, and so does the model of their
// costs.
#pragma once

#include <cstddef>

namespace ringred {

// Bytes that are sent in the time that a message takes, about.
constexpr std::size_t message_bytes = std::size_t{16} << 10;

// How many times as large as RINGRED_SLOT_BYTES slots are: a turn has two messages in each direction, and fewer of them
// that are longer take less time (docs/decisions/0008).
constexpr std::size_t larger_slots = 2;

// Whether nodes send each other their sums whole, (K-1) S bytes of each instead of 2 (K-1)/K S: what is more than the
// latter must take less time than the message that is saved.
constexpr bool may_send_sums(int nodes, std::size_t bytes) {
  return nodes > 1 && static_cast<double>(bytes) * (nodes - 1) * (1 - 2.0 / nodes) <= double{message_bytes};
}

// Turns of what is long, at least: across nodes one is on its way while another is reduced. Two are slower than three.
constexpr std::size_t least_turns(std::size_t bytes) {
  return bytes > (std::size_t{512} << 10) ? 3 : 1;
}

}  // namespace ringred
