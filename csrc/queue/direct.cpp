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

const void* const* inputs_of(const std::vector<void*>& arrays) {
  return const_cast<const void* const*>(arrays.data());
}

NormKernel norm_of(const Batch& batch, const Run& run) {
  const bool wanted = !batch.mine.empty() && batch.mine.front()->request.norm;
  return wanted ? norm_kernel(*batch.instruction_set, run.dtype) : nullptr;
}

}  // namespace

InPlace::InPlace(const Batch& batch, const Run& run)
    : parts_(run.count, info(run.dtype).size, static_cast<std::size_t>(batch.size)),
      index_(static_cast<std::size_t>(batch.index)),
      divisor_(divisor_of(batch)),
      dtype_(run.dtype),
      instruction_set_(*batch.instruction_set),
      mine_(batch.mine.empty() ? nullptr : batch.mine.front()),
      givers_(batch.givers),
      bases_(batch.bases),
      element_bytes_(info(run.dtype).size),
      places_(batch.givers.size()) {}

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
  const std::size_t element_bytes = info(dtype_).size, block = (std::size_t{16} << 10) / element_bytes;
  for (std::size_t begin = part.begin; begin < part.end; begin += block) {
    const std::size_t count = std::min(block, part.end - begin);
    const std::vector<void*>& arrays = places(slots, begin);
    mine_->squares += norm_(inputs_of(arrays), static_cast<int>(arrays.size()), arrays.front(), count, divisor_);
    for (std::size_t i = 1; i < arrays.size(); ++i) std::memcpy(arrays[i], arrays.front(), count * element_bytes);
  }
}

UpdateMovement::UpdateMovement(const Batch& batch, const Run& run)
    : InPlace(batch, run),
      update_(*batch.mine.front()->request.update),
      kernel_(update_kernel(*batch.instruction_set, run.dtype, update_.rule)),
      norm_(norm_kernel(*batch.instruction_set, run.dtype)) {
  for (const Update::Stretch& stretch : update_.stretches)
    for (std::size_t turn = parts_.turn_of(stretch.begin); turn * parts_.elements_of_turn() < stretch.end; ++turn)
      if (turns_.empty() || turns_.back() < turn) turns_.push_back(turn);
}

void UpdateMovement::reduce(std::size_t turn, const Slots& slots) {
  const Parts::Part part = parts_.of(turns_[turn], index_);
  auto stretch = std::upper_bound(update_.stretches.begin(), update_.stretches.end(), part.begin,
                                  [](std::size_t place, const Update::Stretch& one) { return place < one.end; });
  for (; stretch != update_.stretches.end() && stretch->begin < part.end; ++stretch) {
    const std::size_t begin = std::max(part.begin, stretch->begin), end = std::min(part.end, stretch->end);
    step(begin, end - begin, part.before + (begin - part.begin), update_.rates[stretch->rates], slots);
  }
}

void UpdateMovement::step(std::size_t at, std::size_t count, std::size_t state, const Rates& rates,
                          const Slots& slots) {
  const std::size_t bytes = info(dtype_).size;
  const std::vector<void*>& gradients = places(slots, at);
  const auto ranks = static_cast<int>(gradients.size());
  if (update_.measures) {
    if (average_.size() < count * bytes) average_.resize(count * bytes);
    mine_->squares += norm_(inputs_of(gradients), ranks, average_.data(), count, divisor_);
    return;
  }
  std::vector<void*> outputs;
  for (std::byte* parameters : update_.parameters) outputs.push_back(parameters + at * bytes);
  UpdateArrays arrays{};
  arrays.gradients = inputs_of(gradients);
  arrays.gradient_count = ranks;
  arrays.parameter = update_.parameters.size() == 1 ? outputs.front() : outputs[index_];
  arrays.outputs = outputs.data();
  arrays.output_count = static_cast<int>(outputs.size());
  for (std::size_t i = 0; i < 3; ++i)
    arrays.state[i] = update_.states[i] == nullptr ? nullptr : update_.states[i] + state * bytes;
  arrays.average = update_.keeps_gradients ? gradients.front() : nullptr;
  kernel_(arrays, count, divisor_, update_.factor, rates);
  for (std::size_t i = 1; update_.keeps_gradients && i < gradients.size(); ++i)
    std::memcpy(gradients[i], gradients.front(), count * bytes);
}

}  // namespace ringred
