// The movements that reduce: allreduce in one shot (few bytes) and in two, and reduce-scatter.
//
// Arrays are packed into the slots and unpacked from them as they lie, many at once, and scaled and cast in the same
// pass: the slots are the fusion buffer. Traffic of memory beyond the caches: each array is read once and written once.
#pragma once

#include <span>
#include <vector>

#include "csrc/queue/movements.h"
#include "csrc/queue/pieces.h"
#include "csrc/reduce/update.h"

namespace ringred {

// Whether nodes send each other their sums whole, (K-1) S bytes of each instead of 2 (K-1)/K S: what is more than the
// latter must take less time than the message that is saved.
bool may_send_sums(int nodes, std::size_t bytes);

// Whether they do in an allreduce: also, sums must be made by node.
bool sends_sums(const Batch& batch, const Run& run);

// Turns of what is long, at least: across nodes one is on its way while another is reduced. Two are slower than three.
constexpr std::size_t least_turns(std::size_t bytes) {
  return bytes > (std::size_t{512} << 10) ? 3 : 1;
}

// What the reductions share: how numbers become what travels, and back.
class Reducing {
 public:
  Reducing(const Batch& batch, const Run& run);

 protected:
  bool gives() const { return !mine_.empty(); }
  // Nothing is scaled or cast: arrays can be read and written by the kernel itself.
  bool plain() const { return plain_; }

  void pack(const Pieces& pieces, std::size_t begin, std::size_t end, std::byte* place) const;
  void unpack(const Pieces& pieces, std::size_t begin, std::size_t end, const std::byte* place) const;

  // Combines [begin, end) of what all givers have, found at `offset` of their slots; where plain, this member's own is
  // taken from its arrays. The result goes into its arrays; and, where `share` is not null, there as well.
  void finish(const Slots& slots, std::size_t offset, const Pieces& pieces, std::size_t begin, std::size_t end,
              std::byte* share);

  // The same of what the givers of each node have added up, found in the slots of these members.
  void finish_sums(const Slots& slots, std::span<const int> members, std::size_t offset, const Pieces& pieces,
                   std::size_t begin, std::size_t end, std::byte* share);

  // Adds up what a node's members have, or combines what the nodes have.
  void add_arrays(std::span<const void* const> arrays, std::size_t count, void* output);
  void reduce_arrays(std::span<const void* const> arrays, std::size_t count, void* output);

  // Combines what the givers of this node have into the own slot.
  void add_up(const Slots& slots, std::size_t offset, const Pieces& pieces, std::size_t begin, std::size_t end);

  // Whether the sum is made of the nodes' sums, in the order of the nodes; else it is made in the order of the members.
  // It is not where an average is divided as an integer: sums of their own width cannot carry it. Half types are summed
  // in fp32 on each node and rounded, and so once more at the end; of an average each node divides its sum, which might
  // not fit a half.
  bool adds_by_node() const { return by_node_; }
  int here() const { return here_; }
  const std::vector<int>& givers_of(int node) const { return givers_of_[static_cast<std::size_t>(node)]; }

  const std::span<Operation* const> mine_;
  const std::span<const int> givers_;
  const std::size_t index_, size_, wire_bytes_;

 private:
  // Finds what these members have at `offset` of their slots; this member's own at `own`, if that is not null.
  void find_inputs(const Slots& slots, std::span<const int> members, std::size_t offset, const std::byte* own);
  void add(std::size_t count, void* output);
  void call(std::size_t count, void* output);
  void call_by_node(const Slots& slots, std::size_t offset, const std::byte* own, std::size_t count, void* output);
  template <class Combine>
  void store(const Pieces& pieces, std::size_t begin, std::size_t end, std::byte* share, Combine&& combine);

  const DType dtype_;
  const double prescale_, postscale_;
  const bool plain_;
  const ScaleKernel to_wire_, from_wire_;
  const bool by_node_;
  const ReduceKernel kernel_, adding_;
  const NormKernel norm_;  // null: not asked for
  const bool divides_, divides_first_;
  const int here_;                            // the own node
  std::vector<std::vector<int>> givers_of_;   // by node
  std::vector<std::vector<std::byte>> sums_;  // by node
  std::vector<const void*> inputs_;
  std::vector<std::byte> scratch_;
};

// Everyone adds everything: one stage less, for few bytes.
class OneShotMovement : public Movement, Reducing {
 public:
  OneShotMovement(const Batch& batch, const Run& run);
  static bool fits(const Batch& batch, const Run& run);
  std::size_t turns() const override { return 1; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

 private:
  const std::size_t count_;
  Pieces pieces_;
};

// Each member reduces its parts of every slot. A turn has a part for each node and column (Nodes); on one node that is
// one for each member.
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
// Where sums are not made by node (Way::two_shot, averages of integers), every owner is sent what all members have.
class TwoShotMovement : public Movement, protected Reducing {
 public:
  TwoShotMovement(const Batch& batch, const Run& run);
  std::size_t turns() const override { return turns_; }
  bool combines() const override { return combines_; }
  bool reduces() const override { return true; }
  bool keeps_results() const override { return sends_sums_; }
  bool works() const override { return !sends_sums_ || !awaited_.empty(); }
  const std::vector<int>& awaited() const override { return awaited_; }
  std::uint32_t local_events() const override {
    return (combines_ ? copied_raised : 0u) | (sends_sums_ ? reduced_raised : 0u);
  }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void combine(std::size_t turn, const Slots& slots) override;
  void reduce(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

 protected:
  struct Part {
    std::size_t offset, begin, end;  // in a slot, in bytes; in the whole, in elements
  };
  Part part_of(std::size_t turn, int row, int column) const;
  bool owns(int column) const { return nodes_.owns(static_cast<int>(index_), column); }

  const Nodes& nodes_;
  const int columns_;

 private:
  Stretch stretch_of(const Part& part) const { return {part.offset, (part.end - part.begin) * wire_bytes_}; }
  bool reads_arrays(int row, int column) const;
  int own_row() const { return sends_sums_ ? 0 : here(); }
  std::byte* result_in(const Slots& slots, int row, int column) const;

  const bool combines_;
  const bool sends_sums_;  // whole, to all nodes
  const int rows_;         // of parts: one for each node that makes results
  const std::size_t count_;
  std::size_t turns_, part_elements_;
  Pieces pieces_;
  std::vector<int> owners_;   // of a column, on nodes that give
  std::vector<int> awaited_;  // the owners of the same columns on other nodes
};

// Like the first half of the two shots, but the parts are rows of each array, and only their owner gets them.
class ReduceScatterMovement : public Movement, Reducing {
 public:
  ReduceScatterMovement(const Batch& batch, const Run& run);
  std::size_t turns() const override { return turns_; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

 private:
  RowRange part_of(std::size_t turn, std::size_t owner) const;  // in elements

  const Nodes& nodes_;
  const std::size_t room_elements_;  // of a slot, for each owner
  const std::size_t turns_;
  std::vector<Pieces> parts_;  // by owner
};

}  // namespace ringred
