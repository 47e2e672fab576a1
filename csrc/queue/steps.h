// The movements of an optimizer's step, see Update. A member owns parts of the parameters, with the optimizer's state
// of these alone, and updates them for all members of its node.
//
// On one node it does so as AllreduceInPlace reduces: each turn, from all members' gradients, which nobody else reads
// there, into all members' parameters.
//
// Across nodes every node has all parts, and each of its members those of its columns (nodes.h). A turn is a slice of
// the columns' parts that fits a slot. Of that the owners of a column
//   B1 add up their nodes' gradients where they lie, and send each node its piece,
//   B2 add up the nodes' sums of their nodes' pieces, and send the result to all nodes,
//   C  update the column from the pieces, wherever these were added up.
// So all nodes update from the same bits, and end with the same. In B2 a member writes into a piece of the own node, as
// TwoShotMovement does, so that it overwrites nothing that is on its way. In B1 and C it reads and writes its own
// columns of its neighbours' arrays, which nobody else touches in any turn.
#pragma once

#include <vector>

#include "csrc/queue/direct.h"
#include "csrc/queue/nodes.h"
#include "csrc/reduce/update.h"

namespace ringred {

// What one step does to elements that this member owns.
class StepInPlace : public InPlace {
 public:
  StepInPlace(const Batch& batch, const Run& run);

 protected:
  // A stretch of a part in which parameters step.
  struct Stepping {
    std::size_t begin, end;
    const Rates& rates;
  };
  bool steps_in(std::size_t begin, std::size_t end) const;
  template <class Visit>
  void visit(std::size_t begin, std::size_t end, Visit&& visit) const;

  // Adds up the squares of the reduced gradients. `output` may be one of these.
  void measure(const std::vector<void*>& gradients, std::size_t count, void* output);

  // Updates elements from `at` on, whose state begins with element `state` of this member's. `averages`: where the
  // reduced gradients are kept, if they are.
  void step(std::size_t at, std::size_t count, std::size_t state, const Rates& rates,
            const std::vector<void*>& gradients, const std::vector<void*>& averages);

  const Update& update_;

 private:
  std::vector<Update::Stretch>::const_iterator first_after(std::size_t place) const;

  const std::size_t place_;  // of this member on its node
  const UpdateKernel kernel_;
  const NormKernel norm_;
  std::vector<void*> outputs_;
};

class UpdateInPlace : public StepInPlace {
 public:
  UpdateInPlace(const Batch& batch, const Run& run);
  std::size_t turns() const override { return turns_.size(); }
  void reduce(std::size_t turn, const Slots& slots) override;

 private:
  std::vector<std::size_t> turns_;  // of the parts, in which some parameter steps
  std::vector<std::byte> average_;
};

class UpdateAcrossNodes : public StepInPlace {
 public:
  UpdateAcrossNodes(const Batch& batch, const Run& run);
  std::size_t turns() const override { return slices_.size(); }
  bool combines() const override { return true; }
  bool copies_out_for_neighbours() const override { return true; }
  void combine(std::size_t turn, const Slots& slots) override;
  void reduce(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

 private:
  struct Slice {
    std::size_t turn, begin;  // of the parts; in each part
  };
  struct Piece {
    std::size_t offset, begin, end;  // in a slot, in bytes; in the whole, in elements
  };
  Piece piece_of(std::size_t turn, int node, int column) const;
  void find_sums(const Slots& slots, int column, std::size_t offset);
  std::byte* slot_of(const Slots& slots, int node, int column) const {
    return slots.of[static_cast<std::size_t>(nodes_.owner(node, column))];
  }

  const Nodes& nodes_;
  const int here_, columns_;
  const std::vector<int> owned_;  // columns
  const ReduceKernel adding_;
  std::size_t piece_elements_;
  std::vector<Slice> slices_;  // in which some parameter steps
  std::vector<void*> sums_;    // by node
};

}  // namespace ringred
