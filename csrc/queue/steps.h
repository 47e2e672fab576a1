// The movements of an optimizer's step, see Update. A member owns parts of the parameters, with the optimizer's state
// of these alone, and updates them for all members of its node.
//
// On one node it does so as AllreduceInPlace reduces: each turn, from all members' gradients, which nobody else reads
// there, into all members' parameters.
//
// Across nodes every node has all parts, and each of its members those of its columns (nodes.h). A turn is a slice of
// the columns' parts that fits a slot. Of that the owners of a column
//   B1 add up their nodes' gradients where they lie, and send each node its piece,
//   B2 add up the nodes' sums of their nodes' pieces, and send the results to all nodes,
//   C  update the column from the results.
// Where TwoShotMovement sends sums whole, so does this: then a slice has one piece for all nodes, and B2 updates it
// from the nodes' sums. So it is where a schedule brings the sums together (columns.h), which takes nodes of one size:
// then each member owns one column. A norm needs no results elsewhere; each square is counted on one node.
//
// All nodes update from the same sums in the same order, and end with the same bits. In B2 a member writes into a piece
// of the own node, as TwoShotMovement does, so that it overwrites nothing that is on its way. Of its neighbours' arrays
// it reads and writes its own columns alone, which nobody else touches in any turn.
#pragma once

#include <optional>
#include <vector>

#include "csrc/queue/columns.h"
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
  bool keeps_results() const override { return own_results_ || update_.measures; }
  bool plays() const override { return schedule_.has_value(); }
  bool play(std::size_t turn, const Slots& slots) override;
  std::vector<int> waits_for(std::uint64_t turn) const override { return players_->waits_for(turn); }
  bool copies_out_for_neighbours() const override { return !keeps_results(); }
  const std::vector<int>& awaited() const override { return awaited_; }
  std::uint32_t local_events() const override {
    return schedule_ ? all_local : copied_raised | (keeps_results() ? reduced_raised : 0u);
  }
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
  Piece piece_of(std::size_t turn, int row, int column) const;
  int own_row() const { return own_results_ ? 0 : here_; }
  const std::vector<void*>& sums(const Slots& slots, int column, std::size_t offset);
  const std::vector<void*>& results(const Slots& slots, int row, int column, std::size_t offset);
  void add_up(const Slots& slots, const Piece& piece, int column);
  void measure_piece(const Slots& slots, const Piece& piece, int column);
  void step_piece(std::size_t turn, const Slots& slots, int row, std::size_t nth);
  std::byte* slot_of(const Slots& slots, int node, int column) const {
    return slots.of[static_cast<std::size_t>(nodes_.owner(node, column))];
  }

  const Nodes& nodes_;
  const int here_, columns_;
  const std::optional<Algorithm> schedule_;
  ColumnPlayers* const players_;
  const bool own_results_;        // each node makes all for itself
  const int rows_;                // of pieces: one for each node that makes results for all
  const std::vector<int> owned_;  // columns
  const ReduceKernel adding_;
  std::size_t piece_elements_;
  std::vector<Slice> slices_;  // in which some parameter steps
  std::vector<int> awaited_;   // the owners of the same columns on other nodes
  std::vector<void*> inputs_;
};

}  // namespace ringred
