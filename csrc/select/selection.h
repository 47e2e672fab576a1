// What the calls of one communicator choose by: a way forced by hand, thresholds set by hand, costs from a file, or
// costs that are measured when they first matter.
//
// Invariant: it changes by what all ranks do and see alike, the same calls in the same order; so all choose alike.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <optional>
#include <vector>

#include "csrc/base/settings.h"
#include "csrc/select/choice.h"

namespace ringred {

class Selection {
 public:
  // A call of so few bytes is done in one shot on any machine, so it neither pays for a calibration nor looks further.
  static constexpr std::size_t sure_bytes = 1 << 10;
  static constexpr double calibration_seconds = 0.025;  // of 0.05; a probe that is under way is ended

  // `tuned`: costs from a file. With them every way may be chosen. Otherwise only those that add in the order of the
  // ranks are: costs measured anew in every run may not change a result's bits from run to run. Across nodes nothing is
  // measured, and the choice is by the usual costs, which are the same in every run.
  Selection(const Settings& settings, const Placement& placement, const std::optional<Costs>& tuned);

  // `simple`: partial results travel as the elements themselves; what is converted is left to the leaves.
  Way of(std::size_t bytes, bool simple) const {
    if (bytes <= sure_) return Way::one_shot;
    if (forced_) return *forced_ == Way::one_shot && bytes > one_shot_room_ ? bulk_ : *forced_;
    const Way way = choice_.of(bytes, arena_[class_of(bytes)]);
    return simple || !schedule_of(way) ? way : bulk_;
  }

  // What all ranks saw in a call of so many bytes. The next one of about that size is taken to be alike: ranks have to
  // choose before they see each other's lines.
  void saw(std::size_t bytes, bool all_in_arenas) { arena_[class_of(bytes)] = all_in_arenas; }

  // Whether costs ought to be measured after a call of so many bytes.
  bool is_due(std::size_t bytes) const { return measures_ && bytes > sure_bytes && bytes <= one_shot_room_; }
  void no_calibration() { measures_ = false; }
  void take(const Costs& costs);

  // From now on, and no longer with nullopt.
  void force(std::optional<Way> way);

  // What it would be for arrays of such a kind, whatever came before, were none forced.
  Way chosen(std::size_t bytes, bool arena) const { return choice_.of(bytes, arena && bytes > sure_bytes); }
  const Costs& costs() const { return costs_; }
  const Placement& placement() const { return placement_; }
  std::size_t one_shot_room() const { return one_shot_room_; }
  std::vector<Way> ways() const;  // that there are
  double predicted(Way way, std::size_t bytes, bool arena) const {
    return price(way, static_cast<double>(bytes), arena, placement_, costs_);
  }

 private:
  static std::size_t class_of(std::size_t bytes) { return static_cast<std::size_t>(std::bit_width(bytes)); }

  void choose();

  const Placement placement_;
  const std::size_t one_shot_room_;
  const Way bulk_;
  const bool by_hand_, tuned_;
  bool measures_;
  std::size_t sure_ = 0;
  std::optional<Way> forced_;
  Costs costs_;
  Choice choice_;
  std::array<bool, 65> arena_{};  // by the bits of the size
};

}  // namespace ringred
