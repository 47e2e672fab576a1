// Plays a schedule on modelled hardware, event by event, with contention: how long it takes and which links it loads.
//
// 1. Every link serves messages whole, in the order in which their first bytes reach it (ties: by rank, then lane). It
//    is busy with a message for bytes * beta; whoever comes meanwhile queues.
// 2. Links on the way work at the same time: the first byte leaves a link alpha after the message's turn came, the last
//    byte when both this link and, alpha earlier, the one before are done with it.
// 3. A lane has one message on its first link at a time. Switches and receivers have room for all that comes.
// 4. A rank's processor interprets and reduces for one step at a time, in the order in which they become ready.
//
// Invariant: a model of the traffic of schedules, not a measurement: docs/scaling.md says what it leaves out.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "csrc/schedule/hardware.h"
#include "csrc/schedule/outline.h"

namespace ringred {

enum class LinkKind : std::uint8_t { memory, card_out, card_in, core_up, core_down };

inline constexpr std::array<std::string_view, 5> link_kind_names{"memory", "card out", "card in", "core up",
                                                                 "core down"};

struct LinkLoad {
  int links = 0;
  double bytes = 0;    // over all links of the kind
  double busiest = 0;  // the part of the time that the busiest one was busy
  double mean = 0;     // the same, the mean over all
};

struct Simulated {
  double seconds = 0;   // until the last rank has ended
  double messages = 0;  // of all ranks
  std::array<LinkLoad, 5> loads{};
};

// For a vector of `bytes`. A schedule that never ends, or an outline that does not fit the hardware, is a usage error.
Simulated simulate(const Outline& outline, double bytes, const Hardware& hardware);

}  // namespace ringred
