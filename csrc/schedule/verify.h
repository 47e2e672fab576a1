// Proves a schedule right by playing it with symbols: a value is the set of ranks that it sums.
//
// What is checked: every chunk of every rank ends as the sum of all ranks; nothing is counted twice; messages are taken
// in the order and in the portions in which they were sent; nothing is left untaken; no lane waits for ever; no chunk
// is overwritten that a peer has yet to read.
//
// Invariant: the report depends on the schedule, the channel, the seed and the rules alone.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "csrc/schedule/step.h"

namespace ringred {

inline constexpr int largest_verified_size = 1024;

// How a chunk gets from rank to rank. Eager: the sender copies it into one of `slots` slots, and waits where none is
// free. Pull: the sender shows where it is, and the peer reads it when it takes it.
struct Channel {
  std::string_view name;
  bool pull;
  int slots;
};

inline constexpr std::array<Channel, 5> channels{{
    {"eager, 1 slot", false, 1},
    {"eager, 2 slots", false, 2},
    {"eager, 8 slots", false, 8},
    {"eager, unbounded", false, 1 << 30},
    {"pull", true, 1 << 30},
}};

// What a player must observe. Tests switch a rule off to see that the verifier notices.
struct PlayerRules {
  bool in_behind_out = true;     // within a step, a chunk is written only after it has been sent
  bool write_after_read = true;  // a chunk is written only after every peer that pulls it has read it
};

// One execution in an order drawn from `seed`. Empty: no flaw. Otherwise a sentence that names rank, lane, step, chunk.
std::optional<std::string> find_flaw(const Schedule& schedule, const Channel& channel, std::uint32_t seed,
                                     const PlayerRules& rules = {});

// All channels; throws a usage error with the first flaw.
void verify(const Schedule& schedule, std::uint32_t seed = 0);

}  // namespace ringred
