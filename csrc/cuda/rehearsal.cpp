#include "csrc/cuda/rehearsal.h"

#include <bit>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <tuple>

#include "csrc/base/error.h"

namespace ringred::cuda {
namespace {

using Ranks = std::uint32_t;  // a bit for each rank that a value sums

struct Head {
  std::size_t step = 0;
  bool sent = false;
};

class Stage {
 public:
  explicit Stage(const Schedule& schedule) : schedule_(schedule) {
    for (std::size_t rank = 0; rank < schedule.ranks.size(); ++rank) {
      const std::vector<Lane>& lanes = schedule.ranks[rank];
      heads_.emplace_back(lanes.size());
      values_.emplace_back(static_cast<std::size_t>(schedule.chunks), Ranks{1} << rank);
      rehearsal_.touches.emplace_back();
      rehearsal_.completes.emplace_back();
      for (const Lane& lane : lanes) rehearsal_.completes.back().emplace_back(lane.size(), false);
    }
  }

  Rehearsal play() {
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < heads_.size(); ++rank)
        for (std::size_t lane = 0; lane < heads_[rank].size(); ++lane)
          while (advance(rank, lane)) moved = true;
    }
    for (std::size_t rank = 0; rank < heads_.size(); ++rank)
      for (std::size_t lane = 0; lane < heads_[rank].size(); ++lane)
        if (heads_[rank][lane].step < steps(rank, lane).size())
          fail_usage("a schedule must come to its end: rank " + std::to_string(rank) + " stands at step " +
                     std::to_string(heads_[rank][lane].step) + " of lane " + std::to_string(lane));
    return std::move(rehearsal_);
  }

 private:
  using Wire = std::tuple<int, int, std::size_t>;  // from, to, lane

  const Lane& steps(std::size_t rank, std::size_t lane) const { return schedule_.ranks[rank][lane]; }

  bool advance(std::size_t rank, std::size_t lane) {
    Head& head = heads_[rank][lane];
    if (head.step == steps(rank, lane).size()) return false;
    const Step& step = steps(rank, lane)[head.step];
    for (const Dependency& other : step.after)
      if (heads_[rank][static_cast<std::size_t>(other.lane)].step <= static_cast<std::size_t>(other.step)) return false;
    if (!head.sent && step.to >= 0) send(rank, lane, step);
    head.sent = true;
    if (step.from >= 0 && !take(rank, lane, step)) return false;
    head = {head.step + 1, false};
    return true;
  }

  void send(std::size_t rank, std::size_t lane, const Step& step) {
    std::vector<Ranks> message;
    for (int chunk : step.out) message.push_back(values_[rank][static_cast<std::size_t>(chunk)]);
    wires_[{static_cast<int>(rank), step.to, lane}].push_back(std::move(message));
    touch(rank, lane, false);
  }

  bool take(std::size_t rank, std::size_t lane, const Step& step) {
    std::deque<std::vector<Ranks>>& wire = wires_[{step.from, static_cast<int>(rank), lane}];
    if (wire.empty()) return false;
    std::size_t complete = 0;
    for (std::size_t i = 0; i < step.in.size(); ++i) {
      Ranks& value = values_[rank][static_cast<std::size_t>(step.in[i])];
      value = wire.front().at(i) | (step.act == Act::reduce ? value : 0);
      if (std::popcount(value) == schedule_.size) ++complete;
    }
    wire.pop_front();
    touch(rank, lane, true);
    if (complete != 0 && complete != step.in.size())
      fail_usage("a step must complete all of its chunks or none: rank " + std::to_string(rank) + ", lane " +
                 std::to_string(lane) + ", step " + std::to_string(heads_[rank][lane].step) + " completes " +
                 std::to_string(complete) + " of " + std::to_string(step.in.size()));
    rehearsal_.completes[rank][lane][heads_[rank][lane].step] = complete != 0;
    return true;
  }

  void touch(std::size_t rank, std::size_t lane, bool writes) {
    rehearsal_.touches[rank].push_back({static_cast<int>(lane), static_cast<int>(heads_[rank][lane].step), writes});
  }

  const Schedule& schedule_;
  std::vector<std::vector<Head>> heads_;    // by rank, lane
  std::vector<std::vector<Ranks>> values_;  // by rank, chunk
  std::map<Wire, std::deque<std::vector<Ranks>>> wires_;
  Rehearsal rehearsal_;
};

}  // namespace

Rehearsal rehearse(const Schedule& schedule) {
  return Stage(schedule).play();
}

}  // namespace ringred::cuda
