#include "csrc/queue/steps.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/round.h"

namespace ringred {

StepInPlace::StepInPlace(const Batch& batch, const Run& run)
    : InPlace(batch, run),
      update_(*mine_->request.update),
      place_(static_cast<std::size_t>(batch.nodes->place(batch.index))),
      kernel_(update_kernel(*batch.instruction_set, run.dtype, update_.rule)),
      norm_(norm_kernel(*batch.instruction_set, run.dtype)),
      outputs_(update_.parameters.size()) {}

std::vector<Update::Stretch>::const_iterator StepInPlace::first_after(std::size_t place) const {
  return std::upper_bound(update_.stretches.begin(), update_.stretches.end(), place,
                          [](std::size_t wanted, const Update::Stretch& one) { return wanted < one.end; });
}

bool StepInPlace::steps_in(std::size_t begin, std::size_t end) const {
  const auto stretch = first_after(begin);
  return begin < end && stretch != update_.stretches.end() && stretch->begin < end;
}

// Calls visit(Stepping) for each stretch of [begin, end) that steps.
template <class Visit>
void StepInPlace::visit(std::size_t begin, std::size_t end, Visit&& visit) const {
  if (begin == end) return;
  for (auto stretch = first_after(begin); stretch != update_.stretches.end() && stretch->begin < end; ++stretch)
    visit(Stepping{std::max(begin, stretch->begin), std::min(end, stretch->end), update_.rates[stretch->rates]});
}

void StepInPlace::measure(const std::vector<void*>& gradients, std::size_t count, void* output) {
  mine_->squares += norm_(inputs_of(gradients), static_cast<int>(gradients.size()), output, count, divisor_);
}

void StepInPlace::step(std::size_t at, std::size_t count, std::size_t state, const Rates& rates,
                       const std::vector<void*>& gradients, const std::vector<void*>& averages) {
  for (std::size_t i = 0; i < outputs_.size(); ++i) outputs_[i] = update_.parameters[i] + at * element_bytes_;
  UpdateArrays arrays{};
  arrays.gradients = inputs_of(gradients);
  arrays.gradient_count = static_cast<int>(gradients.size());
  arrays.parameter = update_.shares_parameters ? outputs_.front() : outputs_[place_];
  arrays.outputs = outputs_.data();
  arrays.output_count = static_cast<int>(outputs_.size());
  for (std::size_t i = 0; i < 3; ++i)
    arrays.state[i] = update_.states[i] == nullptr ? nullptr : update_.states[i] + state * element_bytes_;
  arrays.average = update_.keeps_gradients ? averages.front() : nullptr;
  kernel_(arrays, count, divisor_, update_.factor, rates);
  for (std::size_t i = 1; update_.keeps_gradients && i < averages.size(); ++i)
    std::memcpy(averages[i], averages.front(), count * element_bytes_);
}

UpdateInPlace::UpdateInPlace(const Batch& batch, const Run& run) : StepInPlace(batch, run) {
  for (const Update::Stretch& stretch : update_.stretches)
    for (std::size_t turn = parts_.turn_of(stretch.begin); turn * parts_.elements_of_turn() < stretch.end; ++turn)
      if (turns_.empty() || turns_.back() < turn) turns_.push_back(turn);
}

void UpdateInPlace::reduce(std::size_t turn, const Slots& slots) {
  const Parts::Part part = parts_.of(turns_[turn], index_);
  visit(part.begin, part.end, [&](const Stepping& stretch) {
    const std::size_t count = stretch.end - stretch.begin;
    const std::vector<void*>& gradients = places(slots, stretch.begin);
    if (!update_.measures)
      return step(stretch.begin, count, part.before + (stretch.begin - part.begin), stretch.rates, gradients,
                  gradients);
    if (average_.size() < count * element_bytes_) average_.resize(count * element_bytes_);
    measure(gradients, count, average_.data());
  });
}

UpdateAcrossNodes::UpdateAcrossNodes(const Batch& batch, const Run& run)
    : StepInPlace(batch, run),
      nodes_(*batch.nodes),
      here_(nodes_.of(batch.index)),
      columns_(nodes_.columns()),
      owned_(nodes_.columns_of(batch.index)),
      adding_(reduce_kernel(*batch.instruction_set, run.dtype, Op::sum)),
      sums_(static_cast<std::size_t>(nodes_.count())) {
  const auto nodes = static_cast<std::size_t>(nodes_.count()), columns = static_cast<std::size_t>(columns_);
  const std::size_t line = 64,
                    room = (batch.slot_bytes - told_bytes) / (nodes * columns) / line * line / element_bytes_;
  const std::size_t part = parts_.elements_of_part();
  std::size_t slices = divide_up(part, room * nodes);
  // Two turns or more of what is long, as in TwoShotMovement.
  constexpr std::size_t long_bytes = std::size_t{512} << 10;
  if (run.count * element_bytes_ > long_bytes) slices = std::max<std::size_t>(slices, 2);
  piece_elements_ = round_up(divide_up(part, slices * nodes), line / element_bytes_);
  for (std::size_t turn = 0; turn < parts_.turns(); ++turn)
    for (std::size_t begin = 0; begin < part; begin += piece_elements_ * nodes)
      for (std::size_t column = 0; column < columns; ++column) {
        const Parts::Part whole = parts_.of(turn, column);
        const std::size_t from = whole.begin + begin;
        if (!steps_in(from, std::min(from + piece_elements_ * nodes, whole.end))) continue;
        slices_.push_back({turn, begin});
        break;
      }
}

UpdateAcrossNodes::Piece UpdateAcrossNodes::piece_of(std::size_t turn, int node, int column) const {
  const Slice& slice = slices_[turn];
  const Parts::Part part = parts_.of(slice.turn, static_cast<std::size_t>(column));
  const std::size_t begin = part.begin + slice.begin + static_cast<std::size_t>(node) * piece_elements_;
  const auto place = static_cast<std::size_t>(node * columns_ + column);
  return {told_bytes + place * piece_elements_ * element_bytes_, std::min(begin, part.end),
          std::min(begin + piece_elements_, part.end)};
}

void UpdateAcrossNodes::combine(std::size_t turn, const Slots& slots) {
  for (int node = 0; node < nodes_.count(); ++node)
    for (const int column : owned_) {
      const Piece piece = piece_of(turn, node, column);
      if (piece.begin == piece.end) continue;
      const std::vector<void*>& gradients = places(slots, piece.begin);
      void* sum = slots.of[index_] + piece.offset;
      adding_(inputs_of(gradients), static_cast<int>(gradients.size()), &sum, 1, piece.end - piece.begin, 1);
    }
}

void UpdateAcrossNodes::find_sums(const Slots& slots, int column, std::size_t offset) {
  for (int node = 0; node < nodes_.count(); ++node)
    sums_[static_cast<std::size_t>(node)] = slot_of(slots, node, column) + offset;
}

void UpdateAcrossNodes::reduce(std::size_t turn, const Slots& slots) {
  for (const int column : owned_) {
    const Piece piece = piece_of(turn, here_, column);
    if (piece.begin == piece.end) continue;
    void* own = slots.of[index_] + piece.offset;
    if (!update_.measures) {
      find_sums(slots, column, piece.offset);
      adding_(inputs_of(sums_), nodes_.count(), &own, 1, piece.end - piece.begin, 1);
      continue;
    }
    visit(piece.begin, piece.end, [&](const Stepping& stretch) {
      const std::size_t offset = piece.offset + (stretch.begin - piece.begin) * element_bytes_;
      find_sums(slots, column, offset);
      measure(sums_, stretch.end - stretch.begin, slots.of[index_] + offset);
    });
  }
}

void UpdateAcrossNodes::copy_out(std::size_t turn, const Slots& slots) {
  if (update_.measures) return;
  for (std::size_t nth = 0; nth < owned_.size(); ++nth) {
    const Parts::Part part = parts_.of(slices_[turn].turn, static_cast<std::size_t>(owned_[nth]));
    for (int node = 0; node < nodes_.count(); ++node) {
      const Piece piece = piece_of(turn, node, owned_[nth]);
      std::byte* sums = slot_of(slots, node, owned_[nth]) + piece.offset;
      visit(piece.begin, piece.end, [&](const Stepping& stretch) {
        const std::size_t state = parts_.before(part, nth, owned_.size()) + (stretch.begin - part.begin);
        const std::vector<void*> sum = {sums + (stretch.begin - piece.begin) * element_bytes_};
        step(stretch.begin, stretch.end - stretch.begin, state, stretch.rates, sum, places(slots, stretch.begin));
      });
    }
  }
}

void UpdateAcrossNodes::needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const {
  const bool results = stage == Stage::reduce && !update_.measures;
  if (!results && stage != Stage::combine) return;
  for (const int column : owned_) {
    const Piece piece = piece_of(turn, results ? here_ : node, column);
    if (piece.begin == piece.end) continue;
    const Stretch stretch{piece.offset, (piece.end - piece.begin) * element_bytes_};
    const bool follows = !stretches.empty() && stretches.back().offset + stretches.back().bytes == stretch.offset;
    if (follows)
      stretches.back().bytes += stretch.bytes;
    else
      stretches.push_back(stretch);
  }
}

}  // namespace ringred
