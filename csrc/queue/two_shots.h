// The allreduce in two shots: each member reduces its parts of every slot. A turn has a part for each node and column
// (Nodes); on one node that is one for each member.
//
// Across nodes the columns are combined first (B1): the owner of a column adds up what its node has of all parts of
// that column, and sends each node's part there; the owner of the column there adds up what the nodes have (B2) and
// sends the result to all nodes. Of a vector of S bytes a node of K sends 2(K-1)/K S, the least there is, however many
// ranks it has, and all its ranks send. In B1 a member writes only its columns in its own slot, which nobody else reads
// before B2; of these, members of other nodes read, in mirrors, the parts of their own node, and the result is written
// into a part of this node: so B2 overwrites nothing that is on its way.
//
// Two nodes send each other their sums whole, and so do more of them where that is little: as many bytes, or few more,
// in one message instead of two. Then each node makes all results for itself. The owner of a column adds the nodes'
// sums up in the mirror of one of them, which its node alone has, and which is filled again when all have left the
// turn.
//
// Or the owners of a column play a schedule (columns.h) on their nodes' sums, in their own slots: with many nodes it
// has fewer messages than 2(K-1). Again each node makes all results for itself, and nothing is read in mirrors.
//
// Where sums are not made by node (Way::two_shot, averages of integers), every owner is sent what all members have.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "csrc/queue/columns.h"
#include "csrc/queue/exchange.h"
#include "csrc/queue/reductions.h"

namespace ringred {

class TwoShotMovement : public Movement, protected Reducing {
 public:
  TwoShotMovement(const Batch& batch, const Run& run);
  std::size_t turns() const override { return turns_; }
  bool combines() const override { return adds_by_node(); }
  bool reduces() const override { return true; }
  bool keeps_results() const override { return rows_ == 1 && adds_by_node(); }
  bool plays() const override { return schedule_.has_value(); }
  bool works() const override { return !keeps_results() || works_; }
  const std::vector<int>& awaited() const override { return awaited_; }
  std::uint32_t local_events() const override;
  void copy_in(std::size_t turn, const Slots& slots) override;
  void combine(std::size_t turn, const Slots& slots) override;
  bool play(std::size_t turn, const Slots& slots) override;
  std::vector<int> waits_for(std::uint64_t turn) const override { return players_->waits_for(turn); }
  void reduce(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

 protected:
  struct Part {
    std::size_t offset, begin, end;  // in a slot, in bytes; in the whole, in elements
  };
  Part part_of(std::size_t turn, int row, int column) const;
  bool owns(int column) const { return nodes_.owns(static_cast<int>(index_), column); }
  // The members whose slots hold what B2 adds up of a column.
  std::span<const int> summands(int column);

  const Nodes& nodes_;
  const std::optional<Algorithm> schedule_;
  const int columns_;

 private:
  Stretch stretch_of(const Part& part) const { return {part.offset, (part.end - part.begin) * wire_bytes_}; }
  bool reads_arrays(int row, int column) const;
  int own_row() const { return rows_ == 1 ? 0 : here(); }
  std::byte* result_in(const Slots& slots, int row, int column) const;

  ColumnPlayers* const players_;
  const int rows_;  // of parts: one for each node that makes results for the others
  int results_on_;  // where results are kept: in the slots of this node's owners, or in the mirrors of another's
  const std::size_t count_;
  std::size_t turns_, part_elements_;
  Pieces pieces_;
  bool works_ = false;  // on what its own node keeps
  std::vector<int> summands_;
  std::vector<int> awaited_;  // the owners of the same columns on other nodes
};

}  // namespace ringred
