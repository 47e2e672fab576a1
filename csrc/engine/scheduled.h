// Allreduce by a schedule inside a node: the recorded steps of one algorithm, played over the FIFOs between the ranks'
// segments. Most calls go to the leaves, which move less memory.
//
// Invariant: partial results travel as partial_dtype() says: half types as fp32, rounded once at the end.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/engine/call.h"
#include "csrc/engine/player.h"
#include "csrc/leaf/reduction.h"
#include "csrc/leaf/team.h"
#include "csrc/link/segment_links.h"
#include "csrc/memory/segment.h"

namespace ringred {

class Scheduled {
 public:
  // The FIFOs begin at `offset` of every rank's segment, of which `own` is this rank's.
  Scheduled(Team& team, Segment& own, std::size_t offset, std::size_t slot_bytes, const InstructionSet& set);

  void allreduce(Algorithm algorithm, const Call& call, const Reduction& reduction, Sentence sentence);

 private:
  using Shape = std::pair<Algorithm, int>;  // and the depth of its pipeline

  Player<SegmentLinks>& player_for(Algorithm algorithm, std::size_t bytes);
  void commit_sending_ends(const std::vector<Lane>& lanes);
  void play(Algorithm algorithm, const Work& work, Sentence sentence);
  std::byte* workspace(std::size_t bytes);

  Team& team_;
  Segment& own_;
  const std::size_t offset_;
  const InstructionSet& set_;
  SegmentLinks links_;
  std::map<Shape, Player<SegmentLinks>> players_;
  std::vector<std::byte> workspace_;  // partial results of another dtype; kept for the next call
};

}  // namespace ringred
