// How a group agrees in which all members submit the same operations in the same order, one at a time (synchronous
// calls across nodes): without a sequencer, in one message from each node to each other one.
//
// Every operation begins with a turn of its own, see turns.h:
//   A   Everyone copies in what it gives, if that is little.
//   B1  The members of each node compare what all of that node call. If that is the same they combine what these give.
//       The first of the node heads what it sends to the other nodes with the call's fingerprint, or with the word that
//       its node does not agree.
//   B2  Whoever has something to reduce waits for the heads of all nodes and for the sums that belong to its own. It
//       reduces only if the heads are equal.
//   C   All read the heads, and come to the same answer. Then a small allreduce, a small broadcast or a barrier is
//       over; others go on with movements; and where nodes differ everyone tells everyone what it has called
//       (Disagreement), and all members fail the operation with the same text.
//
// Members of different nodes may take different sizes for granted, and so wait in B2 for sums that are not coming. The
// words that Disagreement tells release them; the heads came before. A member's entry is compared in B1 only, which is
// before its operation can be over.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "csrc/queue/layout.h"
#include "csrc/queue/movements.h"

namespace ringred {

class Opening : public Movement {
 public:
  // `position`: of the submission, in all members' rings. `batch` is of this member's operation alone.
  Opening(const Batch& batch, std::vector<GroupBlock*> blocks, GroupLayout layout, std::uint64_t position);

  std::size_t turns() const override { return 1; }
  bool combines() const override { return true; }
  bool reduces() const override { return true; }
  bool keeps_results() const override { return true; }
  std::uint32_t local_events() const override { return copied_raised | combined_raised | reduced_raised | left_raised; }
  bool works() const override { return is_first() || (data_ && root_ < 0 && data_->works()); }
  const std::vector<int>& awaited() const override { return awaited_; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void combine(std::size_t turn, const Slots& slots) override;
  void reduce(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

  // After it is done: whether all members call the same. And whether the operation is over with it.
  bool agreed() const { return agreed_; }
  bool was_all() const { return data_ || nothing_; }
  // Where the arrays of this node's members lie, by member, if all have theirs in the arena; else empty.
  const std::vector<std::byte*>& arrays() const { return arrays_; }

 private:
  struct Head {
    std::uint64_t agrees, fingerprint;  // the first member's of a node
  };
  // Behind it, of each member for its neighbours: where its array lies in the arena, see Arena::location.
  static constexpr std::size_t location_at = sizeof(Head);
  static constexpr std::size_t head_bytes = 64;

  std::unique_ptr<Movement> data_of(const Batch& batch) const;
  int first_of(int node) const { return nodes_.members(node).front(); }
  bool is_first() const { return first_of(nodes_.of(index_)) == index_; }
  // Whether this member sends the root's bytes to the other nodes.
  bool sends_for_root() const { return data_ && root_ >= 0 && is_first() && nodes_.of(root_) == nodes_.of(index_); }
  std::uint64_t fingerprint_of(int member) const;
  bool node_agrees() const;
  bool heads_agree(const Slots& slots) const;
  void find_arrays(const Slots& slots);
  static Slots behind_heads(const Slots& slots);
  static std::size_t at(int member) { return static_cast<std::size_t>(member); }

  const std::vector<GroupBlock*> blocks_;
  const GroupLayout layout_;
  const std::uint64_t position_;
  const Nodes& nodes_;
  const int index_, root_;  // root_: of a broadcast, else -1
  const std::size_t broadcast_bytes_;
  const std::unique_ptr<Movement> data_;  // what moves in this turn; null: none does
  const bool nothing_;                    // no data moves at all
  const std::size_t location_;
  const std::span<std::byte* const> bases_;
  std::vector<int> awaited_;
  std::vector<std::byte*> arrays_;
  bool agreed_ = false;
};

// Everyone tells everyone what it has called, and fails its operation.
class Disagreement : public Movement {
 public:
  Disagreement(const Batch& batch, const Entry& mine, std::vector<int> ranks);

  std::size_t turns() const override { return 1; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

 private:
  const Entry& mine_;
  Operation& operation_;
  const std::size_t index_;
  const std::vector<int> ranks_;  // by member
};

}  // namespace ringred
