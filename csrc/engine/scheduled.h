// Allreduce by a forced schedule inside a node: the recorded steps of one algorithm, played over the FIFOs between the
// ranks' segments. The default inside a node are the leaves, which move less memory.
//
// Invariant: partial results travel as partial_dtype() says: half types as fp32, rounded once at the end.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/base/settings.h"
#include "csrc/engine/call.h"
#include "csrc/engine/player.h"
#include "csrc/leaf/reduction.h"
#include "csrc/leaf/team.h"
#include "csrc/link/segment_links.h"
#include "csrc/memory/arena.h"

namespace ringred {

class Scheduled {
 public:
  // Nothing where `settings` force no algorithm. The FIFOs begin at `offset` of every rank's segment.
  static std::optional<Scheduled> if_forced(Team& team, Segment& own, std::size_t offset, const Settings& settings,
                                            const InstructionSet& set);

  void allreduce(const Call& call, const Reduction& reduction, Sentence sentence);

 private:
  Scheduled(Team& team, std::vector<std::byte*> places, Algorithm algorithm, std::size_t slot_bytes,
            const InstructionSet& set);

  Player<SegmentLinks>& player_for(std::size_t bytes);
  void play(const Work& work, Sentence sentence);
  std::byte* workspace(std::size_t bytes);

  Team* team_;
  Algorithm algorithm_;
  const InstructionSet* set_;
  std::unique_ptr<SegmentLinks> links_;          // at a fixed place: the players refer to it
  std::map<int, Player<SegmentLinks>> players_;  // by the depth of the pipeline
  std::vector<std::byte> workspace_;             // partial results of another dtype; kept for the next call
};

}  // namespace ringred
