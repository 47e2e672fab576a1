#include "csrc/queue/direct.h"

#include <algorithm>
#include <cstring>

namespace ringred {
namespace {

constexpr std::uint64_t nowhere = ~std::uint64_t{0};

// Squares are only asked for of an average or a sum, of which the latter has divisor 1.
std::int64_t divisor_of(const Batch& batch) {
  return batch.op == Op::average ? batch.size : 1;
}

std::vector<int> givers_here(const Batch& batch) {
  std::vector<int> here;
  for (const int giver : batch.givers)
    if (batch.nodes->of(giver) == batch.nodes->of(batch.index)) here.push_back(giver);
  return here;
}

NormKernel norm_of(const Batch& batch, const Run& run) {
  const bool wanted = !batch.mine.empty() && batch.mine.front()->request.norm;
  return wanted ? norm_kernel(*batch.instruction_set, run.dtype) : nullptr;
}

}  // namespace

InPlace::InPlace(const Batch& batch, const Run& run)
    : parts_(run.count, info(run.dtype).size, static_cast<std::size_t>(batch.nodes->columns())),
      index_(static_cast<std::size_t>(batch.index)),
      divisor_(divisor_of(batch)),
      element_bytes_(info(run.dtype).size),
      mine_(batch.mine.empty() ? nullptr : batch.mine.front()),
      givers_(givers_here(batch)),
      bases_(batch.bases),
      places_(givers_.size()) {}

void InPlace::copy_in(std::size_t, const Slots& slots) {
  std::uint64_t place = nowhere;
  if (mine_ != nullptr) place = static_cast<std::uint64_t>(mine_->request.tensors.front().output - bases_[index_]);
  std::memcpy(slots.of[index_], &place, sizeof place);
}

const std::vector<void*>& InPlace::places(const Slots& slots, std::size_t begin) {
  for (std::size_t i = 0; i < givers_.size(); ++i) {
    const auto giver = static_cast<std::size_t>(givers_[i]);
    std::uint64_t place = 0;
    std::memcpy(&place, slots.of[giver], sizeof place);
    places_[i] = bases_[giver] + place + begin * element_bytes_;
  }
  return places_;
}

AllreduceInPlace::AllreduceInPlace(const Batch& batch, const Run& run)
    : InPlace(batch, run),
      kernel_(reduce_kernel(*batch.instruction_set, run.dtype, batch.op)),
      norm_(norm_of(batch, run)) {}

void AllreduceInPlace::reduce(std::size_t turn, const Slots& slots) {
  const Parts::Part part = parts_.of(turn, index_);
  if (part.begin == part.end) return;
  if (norm_ != nullptr) return measure(part, slots);
  const std::vector<void*>& arrays = places(slots, part.begin);
  const auto ranks = static_cast<int>(arrays.size());
  kernel_(inputs_of(arrays), ranks, arrays.data(), ranks, part.end - part.begin, divisor_);
}

// In blocks, so that the copies find their source in the first-level cache.
void AllreduceInPlace::measure(const Parts::Part& part, const Slots& slots) {
  const std::size_t block = (std::size_t{16} << 10) / element_bytes_;
  for (std::size_t begin = part.begin; begin < part.end; begin += block) {
    const std::size_t count = std::min(block, part.end - begin);
    const std::vector<void*>& arrays = places(slots, begin);
    mine_->squares += norm_(inputs_of(arrays), static_cast<int>(arrays.size()), arrays.front(), count, divisor_);
    for (std::size_t i = 1; i < arrays.size(); ++i) std::memcpy(arrays[i], arrays.front(), count * element_bytes_);
  }
}

}  // namespace ringred
