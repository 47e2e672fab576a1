// The movements that only move bytes: broadcast, allgather and alltoall.
#pragma once

#include <vector>

#include "csrc/queue/movements.h"
#include "csrc/queue/pieces.h"

namespace ringred {

// The root copies its bytes into its slot, the others out of it.
class BroadcastMovement : public Movement {
 public:
  explicit BroadcastMovement(const Batch& batch);
  std::size_t turns() const override;
  void copy_in(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

 private:
  const std::size_t bytes_, slot_bytes_, index_;
  std::size_t root_;
  Pieces pieces_;
};

// A movement whose first turn tells everyone how much there is: each member's slot begins with the number of bytes that
// decides how many turns there are, then rows for each array (and, for alltoall, each receiver).
class Announced : public Movement {
 public:
  std::size_t turns() const final { return turns_; }
  bool knows_all() const final { return known_; }
  void copy_in(std::size_t turn, const Slots& slots) final;
  void copy_out(std::size_t turn, const Slots& slots) final;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const final;

 protected:
  Announced(const Batch& batch, std::size_t counts, std::size_t first_room, std::size_t room);

  bool gives() const { return !mine_.empty(); }
  std::span<const Tensor> tensors() const { return mine_.front()->request.tensors; }
  std::vector<Result>& results() { return mine_.front()->results; }

  // What this member announces: counts_ numbers, and the largest number of bytes that takes turns.
  virtual std::uint64_t announce(std::uint64_t* counts) = 0;
  // All have announced: `counts[member]` are theirs, `bytes[member]` their largest numbers.
  virtual void learn(const std::vector<const std::uint64_t*>& counts) = 0;
  // Moves a part of the data: bytes [begin, begin + room) of each stream.
  virtual void give(std::size_t begin, std::size_t room, std::byte* place) = 0;
  virtual void take(std::size_t begin, std::size_t room, std::size_t member, const std::byte* place) = 0;
  // Where give() puts what the members of a node take, from `place` on.
  virtual void given(std::size_t begin, std::size_t room, int node, std::size_t place,
                     std::vector<Stretch>& stretches) const = 0;

  const std::span<Operation* const> mine_;
  const std::size_t index_, size_;

 private:
  void learn_if_possible(const std::vector<const std::uint64_t*>& counts);
  std::size_t header_bytes() const { return (counts_ + 1) * sizeof(std::uint64_t); }

  const std::size_t counts_, first_room_, room_;
  std::size_t turns_ = 1;
  bool known_ = false, takes_ = true;
};

class AllgatherMovement : public Announced {
 public:
  explicit AllgatherMovement(const Batch& batch);

 private:
  std::uint64_t announce(std::uint64_t* counts) override;
  void learn(const std::vector<const std::uint64_t*>& counts) override;
  void give(std::size_t begin, std::size_t room, std::byte* place) override;
  void take(std::size_t begin, std::size_t room, std::size_t member, const std::byte* place) override;
  void given(std::size_t begin, std::size_t room, int node, std::size_t place,
             std::vector<Stretch>& stretches) const override;

  Pieces own_;
  std::vector<Pieces> places_;  // by member
};

class AlltoallMovement : public Announced {
 public:
  explicit AlltoallMovement(const Batch& batch);

 private:
  std::uint64_t announce(std::uint64_t* counts) override;
  void learn(const std::vector<const std::uint64_t*>& counts) override;
  void give(std::size_t begin, std::size_t room, std::byte* place) override;
  void take(std::size_t begin, std::size_t room, std::size_t member, const std::byte* place) override;
  void given(std::size_t begin, std::size_t room, int node, std::size_t place,
             std::vector<Stretch>& stretches) const override;

  const Nodes& nodes_;
  std::vector<Pieces> own_, places_;  // by receiver, by giver
};

}  // namespace ringred
