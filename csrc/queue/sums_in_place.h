// The two shots of a call whose arrays lie in the arena on all members of this node, which have mapped them: the owner
// of a column adds up its node's arrays where they lie (B1), and stores what the nodes have in all into all of them
// (B2). Nothing is copied in or out: of an array of S bytes each member reads S and writes S less than through slots.
//
// Other nodes need not know: turns, stages and what travels are those of TwoShotMovement. For nodes that make all
// results for themselves.
//
// Of its neighbours' arrays a member reads and writes its own columns alone, which nobody else touches in any turn; and
// who has not left the last turn is still in the call.
#pragma once

#include <vector>

#include "csrc/queue/two_shots.h"

namespace ringred {

class SumsInPlace : public TwoShotMovement {
 public:
  // Where the batch's `arrays` says where they are.
  static bool fits(const Batch& batch, const Run& run);
  SumsInPlace(const Batch& batch, const Run& run);
  void copy_in(std::size_t, const Slots&) override {}
  void combine(std::size_t turn, const Slots& slots) override;
  void reduce(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t, const Slots&) override {}

 private:
  const std::vector<std::byte*> arrays_;  // by member; null on other nodes
  std::vector<const void*> inputs_;
};

}  // namespace ringred
