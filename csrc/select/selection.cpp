#include "csrc/select/selection.h"

namespace ringred {

Selection::Selection(const Settings& settings, const Placement& placement, const std::optional<Costs>& tuned)
    : placement_(placement),
      one_shot_room_(ringred::one_shot_room(settings)),
      bulk_(placement.several() ? Way::hierarchical : Way::two_shot),
      by_hand_(settings.one_shot_given && !placement.several()),
      tuned_(tuned.has_value()),
      measures_(!by_hand_ && !tuned_ && settings.algorithm == "auto" && placement.ranks() > 1 && !placement.several()),
      costs_(tuned.value_or(usual_costs(placement.several()))),
      choice_(Choice::by_hand(settings.one_shot_bytes, bulk_)) {
  choose();
  if (settings.algorithm != "auto") force(way_named(settings.algorithm));
}

void Selection::choose() {
  if (placement_.several() && !tuned_) {
    choice_ = Choice::across_nodes("auto", placement_, true);
  } else if (!by_hand_) {
    std::vector<Way> candidates;
    for (const Way way : ways())
      if (tuned_ || !schedule_of(way)) candidates.push_back(way);
    choice_ = Choice::cheapest(candidates, one_shot_room_, placement_, costs_);
  }
  force(forced_);
}

void Selection::take(const Costs& costs) {
  costs_ = costs;
  measures_ = false;
  choose();
}

void Selection::force(std::optional<Way> way) {
  if (way == Way::hierarchical && !placement_.several()) way = Way::two_shot;  // a hierarchy of one level
  forced_ = way;
  const bool small_is_sure = !forced_ && choice_.of(sure_bytes, true) == Way::one_shot &&
                             choice_.of(sure_bytes, false) == Way::one_shot && one_shot_room_ >= sure_bytes;
  sure_ = small_is_sure ? sure_bytes : 0;
}

std::vector<Way> Selection::ways() const {
  std::vector<Way> there;
  for (std::size_t number = 0; number < way_names.size(); ++number)
    if (exists(static_cast<Way>(number), placement_)) there.push_back(static_cast<Way>(number));
  return there;
}

}  // namespace ringred
