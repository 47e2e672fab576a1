#include "csrc/queue/two_shots.h"

#include <algorithm>

#include "csrc/base/round.h"
#include "csrc/select/across_nodes.h"

namespace ringred {

TwoShotMovement::TwoShotMovement(const Batch& batch, const Run& run)
    : Reducing(batch, run),
      nodes_(*batch.nodes),
      schedule_(schedule_of(batch, run)),
      columns_(schedule_ ? nodes_.common_columns() : nodes_.columns()),
      players_(batch.columns),
      rows_(ringred::keeps_results(exchange_of(batch, run)) ? 1 : nodes_.count()),
      results_on_(here()),
      count_(run.count),
      pieces_(pieces_of(batch, run)) {
  constexpr std::size_t line = 64;
  const auto parts = static_cast<std::size_t>(columns_ * rows_);
  const std::size_t unit = std::max<std::size_t>(line / wire_bytes_, 1);
  turns_ = std::max<std::size_t>(divide_up(count_, part_room(batch, parts, run.wire) * parts), 1);
  if (adds_by_node()) turns_ = std::max(turns_, least_turns(count_ * wire_bytes_));
  part_elements_ = round_up(divide_up(divide_up(count_, turns_), parts), unit);
  if (!keeps_results()) return;
  for (int node = nodes_.count() - 1; node >= 0 && !schedule_; --node)  // one that sends something, if there is one
    if (node != here() && (results_on_ == here() || !givers_of(node).empty())) results_on_ = node;
  part_elements_ = std::max(part_elements_, std::min(message_bytes / wire_bytes_, part_room(batch, parts, run.wire)));
  for (int column = 0; column < columns_; ++column) {
    const Part part = part_of(0, 0, column);
    if (!owns(column) || part.begin == part.end) continue;
    works_ = true;
    for (int node = 0; node < nodes_.count() && !schedule_; ++node)
      if (node != here()) awaited_.push_back(nodes_.owner(node, column));
  }
}

std::uint32_t TwoShotMovement::local_events() const {
  if (schedule_) return all_local;
  return (adds_by_node() ? copied_raised : 0u) | (keeps_results() ? reduced_raised : 0u);
}

TwoShotMovement::Part TwoShotMovement::part_of(std::size_t turn, int row, int column) const {
  const auto parts = static_cast<std::size_t>(columns_ * rows_);
  const auto part = static_cast<std::size_t>(row * columns_ + column);
  const std::size_t begin = std::min((turn * parts + part) * part_elements_, count_);
  return {part * part_elements_ * wire_bytes_, begin, std::min(begin + part_elements_, count_)};
}

// Whether this member is the first to reduce a part, and so need not pack its own.
bool TwoShotMovement::reads_arrays(int row, int column) const {
  return plain() && owns(column) && (adds_by_node() || row == own_row());
}

// Where this node's members find the result of a part.
std::byte* TwoShotMovement::result_in(const Slots& slots, int row, int column) const {
  return slots.of[static_cast<std::size_t>(nodes_.owner(keeps_results() ? results_on_ : row, column))];
}

std::span<const int> TwoShotMovement::summands(int column) {
  summands_.clear();
  for (int node = 0; node < nodes_.count(); ++node)
    if (!givers_of(node).empty() && (!schedule_ || node == here())) summands_.push_back(nodes_.owner(node, column));
  return summands_;
}

void TwoShotMovement::copy_in(std::size_t turn, const Slots& slots) {
  if (!gives()) return;
  for (int row = 0; row < rows_; ++row)
    for (int column = 0; column < columns_; ++column) {
      if (reads_arrays(row, column)) continue;
      const Part part = part_of(turn, row, column);
      pack(pieces_, part.begin, part.end, slots.of[index_] + part.offset);
    }
}

void TwoShotMovement::combine(std::size_t turn, const Slots& slots) {
  for (int row = 0; row < rows_; ++row)
    for (int column = 0; column < columns_; ++column) {
      if (!owns(column)) continue;
      const Part part = part_of(turn, row, column);
      add_up(slots, part.offset, pieces_, part.begin, part.end);
    }
}

// Of the columns that schedules are played on a member owns one.
bool TwoShotMovement::play(std::size_t turn, const Slots& slots) {
  for (int column = 0; column < columns_; ++column) {
    if (!owns(column)) continue;
    const Part part = part_of(turn, 0, column);
    return players_->play(slots.turn, *schedule_,
                          {slots.of[index_] + part.offset, wire_bytes_, part.end - part.begin, adding()});
  }
  return true;
}

void TwoShotMovement::reduce(std::size_t turn, const Slots& slots) {
  const bool alone = nodes_.members(here()).size() == 1 && keeps_results();
  for (int column = 0; column < columns_; ++column) {
    if (!owns(column)) continue;
    const Part part = part_of(turn, own_row(), column);
    std::byte* share = alone ? nullptr : result_in(slots, own_row(), column) + part.offset;
    if (adds_by_node())
      finish_sums(slots, summands(column), part.offset, pieces_, part.begin, part.end, share);
    else
      finish(slots, part.offset, pieces_, part.begin, part.end, share);
  }
}

void TwoShotMovement::copy_out(std::size_t turn, const Slots& slots) {
  if (!gives()) return;
  // Every member begins with another one's memory.
  const int parts = columns_ * rows_, own = own_row() * columns_ + static_cast<int>(index_) % columns_;
  for (int step = 1; step <= parts; ++step) {
    const int row = (own + step) % parts / columns_, column = (own + step) % columns_;
    if (nodes_.owner(keeps_results() ? here() : row, column) == static_cast<int>(index_)) continue;
    const Part part = part_of(turn, row, column);
    unpack(pieces_, part.begin, part.end, result_in(slots, row, column) + part.offset);
  }
}

void TwoShotMovement::needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const {
  if (schedule_) return;
  const bool results = stage == Stage::reduce && !keeps_results();
  const bool parts = stage == (adds_by_node() ? Stage::combine : Stage::copy_in);
  if (!results && !(parts && (adds_by_node() ? !givers_of(here()).empty() : gives()))) return;
  for (int column = 0; column < columns_; ++column) {
    if ((results || adds_by_node()) && !owns(column)) continue;
    const Stretch stretch = stretch_of(part_of(turn, results || keeps_results() ? own_row() : node, column));
    if (stretch.bytes > 0) append(stretches, stretch);
  }
}

}  // namespace ringred
