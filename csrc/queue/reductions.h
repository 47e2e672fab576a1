// What the movements that reduce share, and two of them: allreduce in one shot (few bytes), and reduce-scatter.
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

// How many elements of each of so many parts a slot takes, in whole cache lines.
std::size_t part_room(const Batch& batch, std::size_t parts, DType wire);

Pieces pieces_of(const Batch& batch, const Run& run);

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

  // Whether the sum is made of the nodes' sums, in the order of the nodes or of a schedule; else it is made in the
  // order of the members. Half types are summed in fp32 on each node and rounded, and so once more at the end; of an
  // average each node divides its sum, which might not fit a half.
  bool adds_by_node() const { return by_node_; }
  int here() const { return here_; }
  const std::vector<int>& givers_of(int node) const { return givers_of_[static_cast<std::size_t>(node)]; }
  // Adds up what members have; where halves are not averaged, also what nodes have.
  ReduceKernel adding() const { return adding_; }

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
