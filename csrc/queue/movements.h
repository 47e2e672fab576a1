// The movements of the queue's operations, each for one or more operations at once (a fused batch). A member that has
// joined takes part with a movement that is bound to no buffers: it gives nothing, takes nothing, and reduces its part.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "csrc/queue/nodes.h"
#include "csrc/queue/operation.h"
#include "csrc/queue/turns.h"
#include "csrc/reduce/reduce.h"
#include "csrc/select/way.h"

namespace ringred {

class ColumnPlayers;

// What all movements of a batch need to know. The members agree on all of it but `mine`.
struct Batch {
  CallKind kind;
  Op op;
  std::span<const Run> runs;
  std::span<const int> givers;        // the members that submitted, in order
  std::span<Operation* const> mine;   // this member's operations, in the batch's order; empty: it has joined
  int index, size;                    // this member and the members
  std::span<std::byte* const> bases;  // where each member's segment is mapped here
  std::size_t one_shot_bytes, slot_bytes;
  // Of an allreduce: one_shot, two_shot, a schedule across the nodes, or none: by node, and in one shot where it is
  // short.
  std::optional<Way> way;
  const InstructionSet* instruction_set;
  const Nodes* nodes;      // where the members are
  ColumnPlayers* columns;  // null on one node
  // Of a call whose arrays all members of this node have in the arena: where they are, by member. Else empty.
  std::span<std::byte* const> arrays = {};
};

// The movements of a batch, to be played one after the other; those of allreduce and reducescatter are one for each
// run.
std::vector<std::unique_ptr<Movement>> movements_of(const Batch& batch);

}  // namespace ringred
