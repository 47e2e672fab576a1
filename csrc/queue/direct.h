// Allreduce where the arrays lie: every member's are in its arena, which all members have mapped. Nothing is copied. A
// member reduces its parts from all members' memory and stores results into all members' memory.
//
// In turn t a member tells where its array lies (copy in), and then owns part t of its own: it reads and writes that
// part of all arrays, which nobody else touches in any turn. So turns need no order among themselves; they only keep
// members together, and let the engine do other things between them.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/queue/movements.h"
#include "csrc/queue/parts.h"
#include "csrc/reduce/update.h"

namespace ringred {

// What the movements share that work on arrays in place: who of this node has one, and where it lies here.
class InPlace : public Movement {
 public:
  InPlace(const Batch& batch, const Run& run);
  bool reduces() const override { return true; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t, const Slots&) override {}
  void needed(Stage, std::size_t, int, std::vector<Stretch>&) const override {}  // other nodes cannot reach arrays

 protected:
  static constexpr std::size_t told_bytes = 64;  // of a slot, from its beginning on

  // The place of element `begin` in the array of each member of this node that has one, in their order.
  const std::vector<void*>& places(const Slots& slots, std::size_t begin);

  const Parts parts_;
  const std::size_t index_;
  const std::int64_t divisor_;
  const std::size_t element_bytes_;
  Operation* const mine_;  // null: this member has none

 private:
  const std::vector<int> givers_;  // of this node
  const std::span<std::byte* const> bases_;
  std::vector<void*> places_;
};

inline const void* const* inputs_of(const std::vector<void*>& arrays) {
  return const_cast<const void* const*>(arrays.data());
}

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

}  // namespace ringred
