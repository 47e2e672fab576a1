// What each rank's segment begins with, and who may touch it when.
//
// Invariant: every word has one writer, the segment's owner; all others only read (but for the doorbell, see wait.h).
// Fresh segments are zero, which is the state before the first call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "csrc/base/wait.h"

namespace ringred {

// The line with which a rank opens a call. The payload and all other fields first, then the number (seq_cst): whoever
// sees the number sees the rest.
//
// Two banks suffice: a rank writes bank b of call k+2 only after it left call k+1, so it has seen every line of k+1, so
// every rank had left call k and reads no line of it any more. This holds because no rank, not even a root, leaves a
// call before it has seen every line of it.
struct alignas(64) Line {
  static constexpr std::size_t inline_bytes = 40;
  std::atomic<std::uint64_t> number{0};  // of the call, from 1
  std::uint64_t fingerprint = 0;         // of what must agree
  std::uint64_t location = 0;            // of the buffer in its rank's segment, plus one; 0: private
  std::byte payload[inline_bytes] = {};
};
static_assert(sizeof(Line) == 64, "a line is one cache line: its transfer is the latency of a small call");

struct ControlBlock {
  Line lines[2];  // [call number & 1]

  // The number of phases that the rank has completed since init; every rank counts the same phases in the same order.
  // Stored seq_cst after the phase's data.
  alignas(64) std::atomic<std::uint64_t> phase{0};

  Doorbell doorbell;
  Departure departure;

  // Where the engine's RankBlock lies in this segment, for processes that look from outside; 0: there is none.
  std::atomic<std::uint64_t> engine{0};

  // What the rank called, in words; written and read only after fingerprints were found to differ.
  alignas(64) char description[1024] = {};
};

// Where things lie in every rank's segment. The same on all ranks, since it follows from settings that they agree on.
struct Layout {
  static constexpr std::size_t page = 4096;
  static constexpr int banks = 2;  // of one-shot slots, for the reason given at Line
  static constexpr int slots = 3;  // of staging, for the reason given in two_shot.h

  std::size_t one_shot_bytes;  // of a one-shot slot
  std::size_t slot_bytes;      // of a staging slot
  std::size_t small_bytes;     // up to which a broadcast goes through the root's one-shot slot

  std::size_t one_shot_slot(std::uint64_t number) const {
    return round_up(sizeof(ControlBlock)) + (number & 1) * round_up(one_shot_bytes);
  }
  std::size_t staging_slot(std::uint64_t turn) const {
    return one_shot_slot(0) + banks * round_up(one_shot_bytes) + turn % slots * round_up(slot_bytes);
  }
  std::size_t end() const { return staging_slot(0) + slots * round_up(slot_bytes); }

  static std::size_t round_up(std::size_t bytes) { return (bytes + page - 1) / page * page; }
};

}  // namespace ringred
