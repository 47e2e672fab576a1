#include "csrc/queue/steps.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/round.h"
#include "csrc/queue/exchange.h"
#include "csrc/select/across_nodes.h"

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
      schedule_(nodes_.even() ? schedule_of(batch, run) : std::nullopt),
      players_(batch.columns),
      own_results_(schedule_ || may_send_sums(nodes_.count(), run.count * element_bytes_)),
      rows_(own_results_ ? 1 : nodes_.count()),
      owned_(nodes_.columns_of(batch.index)),
      adding_(reduce_kernel(*batch.instruction_set, run.dtype, Op::sum)) {
  for (const int column : owned_)
    for (int node = 0; node < nodes_.count() && !schedule_; ++node)
      if (node != here_) awaited_.push_back(nodes_.owner(node, column));
  constexpr std::size_t line = 64;
  const auto rows = static_cast<std::size_t>(rows_), columns = static_cast<std::size_t>(columns_);
  const std::size_t room = (batch.slot_bytes - told_bytes) / (rows * columns) / line * line / element_bytes_;
  const std::size_t part = parts_.elements_of_part();
  const std::size_t slices = std::max(divide_up(part, room * rows), least_turns(run.count * element_bytes_));
  piece_elements_ = round_up(divide_up(part, slices * rows), line / element_bytes_);
  for (std::size_t turn = 0; turn < parts_.turns(); ++turn)
    for (std::size_t begin = 0; begin < part; begin += piece_elements_ * rows)
      for (std::size_t column = 0; column < columns; ++column) {
        const Parts::Part whole = parts_.of(turn, column);
        const std::size_t from = whole.begin + begin;
        if (!steps_in(from, std::min(from + piece_elements_ * rows, whole.end))) continue;
        slices_.push_back({turn, begin});
        break;
      }
}

UpdateAcrossNodes::Piece UpdateAcrossNodes::piece_of(std::size_t turn, int row, int column) const {
  const Slice& slice = slices_[turn];
  const Parts::Part part = parts_.of(slice.turn, static_cast<std::size_t>(column));
  const std::size_t begin = part.begin + slice.begin + static_cast<std::size_t>(row) * piece_elements_;
  const auto place = static_cast<std::size_t>(row * columns_ + column);
  return {told_bytes + place * piece_elements_ * element_bytes_, std::min(begin, part.end),
          std::min(begin + piece_elements_, part.end)};
}

// What the nodes have added up of a column, at an offset of their slots.
const std::vector<void*>& UpdateAcrossNodes::sums(const Slots& slots, int column, std::size_t offset) {
  inputs_.clear();
  if (schedule_) inputs_.push_back(slot_of(slots, here_, column) + offset);
  for (int node = 0; node < nodes_.count() && !schedule_; ++node)
    inputs_.push_back(slot_of(slots, node, column) + offset);
  return inputs_;
}

// What the gradients of a column are made of that steps, of all nodes.
const std::vector<void*>& UpdateAcrossNodes::results(const Slots& slots, int row, int column, std::size_t offset) {
  if (own_results_) return sums(slots, column, offset);
  inputs_.assign(1, slot_of(slots, row, column) + offset);
  return inputs_;
}

void UpdateAcrossNodes::combine(std::size_t turn, const Slots& slots) {
  for (int row = 0; row < rows_; ++row)
    for (const int column : owned_) {
      const Piece piece = piece_of(turn, row, column);
      if (piece.begin == piece.end) continue;
      const std::vector<void*>& gradients = places(slots, piece.begin);
      void* sum = slots.of[index_] + piece.offset;
      adding_(inputs_of(gradients), static_cast<int>(gradients.size()), &sum, 1, piece.end - piece.begin, 1);
    }
}

bool UpdateAcrossNodes::play(std::size_t turn, const Slots& slots) {
  const Piece piece = piece_of(turn, 0, owned_.front());
  return players_->play(slots.turn, *schedule_,
                        {slots.of[index_] + piece.offset, element_bytes_, piece.end - piece.begin, adding_});
}

void UpdateAcrossNodes::reduce(std::size_t turn, const Slots& slots) {
  for (std::size_t nth = 0; nth < owned_.size(); ++nth) {
    const Piece piece = piece_of(turn, own_row(), owned_[nth]);
    if (update_.measures)
      measure_piece(slots, piece, owned_[nth]);
    else if (own_results_)
      step_piece(turn, slots, 0, nth);
    else
      add_up(slots, piece, owned_[nth]);
  }
}

void UpdateAcrossNodes::add_up(const Slots& slots, const Piece& piece, int column) {
  if (piece.begin == piece.end) return;
  void* result = slots.of[index_] + piece.offset;
  adding_(inputs_of(sums(slots, column, piece.offset)), nodes_.count(), &result, 1, piece.end - piece.begin, 1);
}

void UpdateAcrossNodes::measure_piece(const Slots& slots, const Piece& piece, int column) {
  if (own_results_ && here_ > 0) return;  // the first node counts all
  visit(piece.begin, piece.end, [&](const Stepping& stretch) {
    const std::size_t offset = piece.offset + (stretch.begin - piece.begin) * element_bytes_;
    const std::vector<void*>& all = sums(slots, column, offset);
    // Where sums are sent whole the own one may still be on its way: the average goes into another node's mirror.
    measure(all, stretch.end - stretch.begin, own_results_ ? all.back() : slots.of[index_] + offset);
  });
}

void UpdateAcrossNodes::step_piece(std::size_t turn, const Slots& slots, int row, std::size_t nth) {
  const int column = owned_[nth];
  const Piece piece = piece_of(turn, row, column);
  const Parts::Part part = parts_.of(slices_[turn].turn, static_cast<std::size_t>(column));
  visit(piece.begin, piece.end, [&](const Stepping& stretch) {
    const std::size_t state = parts_.before(part, nth, owned_.size()) + (stretch.begin - part.begin);
    const std::size_t offset = piece.offset + (stretch.begin - piece.begin) * element_bytes_;
    step(stretch.begin, stretch.end - stretch.begin, state, stretch.rates, results(slots, row, column, offset),
         places(slots, stretch.begin));
  });
}

void UpdateAcrossNodes::copy_out(std::size_t turn, const Slots& slots) {
  if (keeps_results()) return;
  for (std::size_t nth = 0; nth < owned_.size(); ++nth)
    for (int row = 0; row < rows_; ++row) step_piece(turn, slots, row, nth);
}

void UpdateAcrossNodes::needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const {
  const bool results = stage == Stage::reduce && !keeps_results();
  if (schedule_ || (!results && stage != Stage::combine)) return;
  for (const int column : owned_) {
    const Piece piece = piece_of(turn, results || own_results_ ? own_row() : node, column);
    if (piece.begin == piece.end) continue;
    append(stretches, {piece.offset, (piece.end - piece.begin) * element_bytes_});
  }
}

}  // namespace ringred
