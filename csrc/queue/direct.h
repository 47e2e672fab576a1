// The movements that work where the arrays lie: every member's are in its arena, which all members have mapped. Nothing
// is copied. A member reduces its parts from all members' memory and stores results into all members' memory.
//
// In turn t a member tells where its array lies (copy in), and then owns part t of its own: it reads and writes that
// part of all arrays, which nobody else touches in any turn. So turns need no order among themselves; they only keep
// members together, and let the engine do other things between them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "csrc/queue/movements.h"
#include "csrc/queue/parts.h"
#include "csrc/reduce/update.h"

namespace ringred {

// What the movements in place share: who has an array, and where it lies here.
class InPlace : public Movement {
 public:
  InPlace(const Batch& batch, const Run& run);
  bool reduces() const override { return true; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t, const Slots&) override {}
  void needed(Stage, std::size_t, int, std::vector<Stretch>&) const override {}  // all members are on one node

 protected:
  // The place of element `begin` in the array of each member that has one, in their order.
  const std::vector<void*>& places(const Slots& slots, std::size_t begin);

  const Parts parts_;
  const std::size_t index_;
  const std::int64_t divisor_;
  const DType dtype_;
  const InstructionSet& instruction_set_;
  Operation* const mine_;  // null: this member has none

 private:
  const std::span<const int> givers_;
  const std::span<std::byte* const> bases_;
  const std::size_t element_bytes_;
  std::vector<void*> places_;
};

// Allreduce. With the request's `norm` it also adds up the squares of the results of this member's parts.
class AllreduceInPlace : public InPlace {
 public:
  AllreduceInPlace(const Batch& batch, const Run& run);
  std::size_t turns() const override { return parts_.turns(); }
  void reduce(std::size_t turn, const Slots& slots) override;

 private:
  void measure(const Parts::Part& part, const Slots& slots);

  const ReduceKernel kernel_;
  const NormKernel norm_;  // null: not asked for
};

// The step of an optimizer, see Update.
class UpdateMovement : public InPlace {
 public:
  UpdateMovement(const Batch& batch, const Run& run);
  std::size_t turns() const override { return turns_.size(); }
  void reduce(std::size_t turn, const Slots& slots) override;

 private:
  void step(std::size_t at, std::size_t count, std::size_t state, const Rates& rates, const Slots& slots);

  const Update& update_;
  const UpdateKernel kernel_;
  const NormKernel norm_;
  std::vector<std::size_t> turns_;  // of the parts, in which some parameter steps
  std::vector<std::byte> average_;
};

}  // namespace ringred
