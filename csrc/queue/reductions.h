// The movements that reduce: allreduce in one shot (few bytes) and in two, and reduce-scatter.
//
// Arrays are packed into the slots and unpacked from them as they lie, many at once, and scaled and cast in the same
// pass: the slots are the fusion buffer. Traffic of memory beyond the caches: each array is read once and written once.
#pragma once

#include <vector>

#include "csrc/queue/movements.h"
#include "csrc/queue/pieces.h"

namespace ringred {

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

  // Combines [begin, end) of what all givers have, found at `offset` of their slots; this member's own is taken from
  // its arrays where plain. The result goes into its arrays; and, where `share` is not null, there as well.
  void combine(const Slots& slots, std::size_t offset, const Pieces& pieces, std::size_t begin, std::size_t end,
               std::byte* share);

  const std::span<Operation* const> mine_;
  const std::span<const int> givers_;
  const std::size_t index_, size_, wire_bytes_;

 private:
  void call(std::size_t count, void* output);

  const DType dtype_;
  const double prescale_, postscale_;
  const bool plain_;
  const ScaleKernel to_wire_, from_wire_;
  const ReduceKernel kernel_;
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

 private:
  const std::size_t count_;
  Pieces pieces_;
};

// Each member reduces its part of every slot.
class TwoShotMovement : public Movement, Reducing {
 public:
  TwoShotMovement(const Batch& batch, const Run& run);
  std::size_t turns() const override { return turns_; }
  bool reduces() const override { return true; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void reduce(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;

 private:
  struct Part {
    std::size_t offset, begin, end;  // in a slot, in bytes; in the whole, in elements
  };
  Part part_of(std::size_t turn, std::size_t owner) const;

  const std::size_t count_;
  std::size_t turns_, part_elements_;
  Pieces pieces_;
};

// Like the first half of the two shots, but the parts are rows of each array, and only their owner gets them.
class ReduceScatterMovement : public Movement, Reducing {
 public:
  ReduceScatterMovement(const Batch& batch, const Run& run);
  std::size_t turns() const override { return turns_; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;

 private:
  const std::size_t room_elements_;  // of a slot, for each owner
  const std::size_t turns_;
  std::vector<Pieces> parts_;  // by owner
};

}  // namespace ringred
