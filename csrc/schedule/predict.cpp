#include "csrc/schedule/predict.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>

#include "csrc/base/error.h"

namespace ringred {
namespace {

std::size_t at(int number) {
  return static_cast<std::size_t>(number);
}

// A lane and its clock; `ends` are the times at which its steps ended.
struct Player {
  int rank;
  int lane;
  const Lane* steps;
  double clock = 0;
  bool sent = false;
  bool waits_in_heap = false;
  std::vector<double> ends;
};

// A discrete-event simulation. The heap holds, for every lane that can act, the earliest time it could; clocks and
// ports only move forward, so a time that has become too early is corrected when it is popped.
class Simulation {
 public:
  Simulation(const Schedule& schedule, double bytes, const Cost& cost);
  double run();

 private:
  using Entry = std::pair<double, std::size_t>;

  std::optional<double> earliest(const Player& player) const;
  void act(Player& player, double time);
  void end_step(Player& player);
  void wake(std::size_t player);
  double bytes_of(const std::vector<int>& chunks) const { return chunk_bytes_ * static_cast<double>(chunks.size()); }

  const Cost& cost_;
  double chunk_bytes_;
  std::size_t steps_left_ = 0;
  std::vector<Player> players_;
  std::vector<std::size_t> first_player_;  // by rank: its lane 0
  std::vector<double> out_port_, in_port_;
  std::map<std::tuple<int, int, int>, std::deque<double>> arrivals_;  // (from, to, lane)
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> heap_;
};

Simulation::Simulation(const Schedule& schedule, double bytes, const Cost& cost)
    : cost_(cost), chunk_bytes_(bytes / schedule.chunks), out_port_(at(schedule.size)), in_port_(at(schedule.size)) {
  for (int rank = 0; rank < schedule.size; ++rank) {
    first_player_.push_back(players_.size());
    int number = 0;
    for (const Lane& lane : schedule.ranks[at(rank)]) {
      players_.push_back({rank, number++, &lane, 0, false, false, {}});
      steps_left_ += lane.size();
    }
  }
}

double Simulation::run() {
  for (std::size_t player = 0; player < players_.size(); ++player) wake(player);
  while (!heap_.empty()) {
    const auto [time, number] = heap_.top();
    heap_.pop();
    Player& player = players_[number];
    player.waits_in_heap = false;
    const std::optional<double> start = earliest(player);
    if (start && *start > time) wake(number);
    if (!start || *start > time) continue;
    act(player, time);
    wake(number);
  }
  if (steps_left_ > 0) fail_usage("a schedule must end: " + std::to_string(steps_left_) + " steps wait for ever");
  double last = 0;
  for (const Player& player : players_) last = std::max({last, player.clock, out_port_[at(player.rank)]});
  return last;
}

// None: it waits for a message or for another lane, and is woken by it.
std::optional<double> Simulation::earliest(const Player& player) const {
  if (player.ends.size() == player.steps->size()) return std::nullopt;
  const Step& step = (*player.steps)[player.ends.size()];
  double time = player.clock;
  for (const Dependency& dependency : step.after) {
    const Player& other = players_[first_player_[at(player.rank)] + at(dependency.lane)];
    if (other.ends.size() <= at(dependency.step)) return std::nullopt;
    time = std::max(time, other.ends[at(dependency.step)]);
  }
  if (!step.out.empty() && !player.sent) return std::max(time, out_port_[at(player.rank)]);
  if (step.in.empty()) return time;
  const auto arrived = arrivals_.find({step.from, player.rank, player.lane});
  if (arrived == arrivals_.end() || arrived->second.empty()) return std::nullopt;
  return std::max({time, arrived->second.front(), in_port_[at(player.rank)] + cost_.beta * bytes_of(step.in)});
}

void Simulation::act(Player& player, double time) {
  const Step& step = (*player.steps)[player.ends.size()];
  player.clock = time;
  if (!step.out.empty() && !player.sent) {
    double& port = out_port_[at(player.rank)];
    port = time + cost_.beta * bytes_of(step.out);
    arrivals_[{player.rank, step.to, player.lane}].push_back(port + cost_.alpha);
    player.sent = true;
    const std::size_t lanes_there =
        (at(step.to) + 1 < first_player_.size() ? first_player_[at(step.to) + 1] : players_.size()) -
        first_player_[at(step.to)];
    if (at(player.lane) < lanes_there) wake(first_player_[at(step.to)] + at(player.lane));
    if (step.in.empty()) end_step(player);
    return;
  }
  if (!step.in.empty()) {
    arrivals_[{step.from, player.rank, player.lane}].pop_front();
    in_port_[at(player.rank)] = time;
    if (step.act == Act::reduce) player.clock += cost_.gamma * bytes_of(step.in);
  }
  end_step(player);
}

void Simulation::end_step(Player& player) {
  player.clock += cost_.step;
  player.ends.push_back(player.clock);
  player.sent = false;
  --steps_left_;
  for (std::size_t other = first_player_[at(player.rank)];
       other < players_.size() && players_[other].rank == player.rank; ++other)
    wake(other);
}

void Simulation::wake(std::size_t number) {
  Player& player = players_[number];
  if (player.waits_in_heap) return;
  if (const std::optional<double> start = earliest(player)) {
    heap_.push({*start, number});
    player.waits_in_heap = true;
  }
}

}  // namespace

double predict_seconds(const Schedule& schedule, double bytes, const Cost& cost) {
  return Simulation(schedule, bytes, cost).run();
}

Counts count(const Schedule& schedule) {
  Counts counts;
  for (const std::vector<Lane>& lanes : schedule.ranks) {
    int messages = 0;
    std::size_t chunks = 0;
    for (const Lane& lane : lanes)
      for (const Step& step : lane) {
        messages += step.out.empty() ? 0 : 1;
        chunks += step.out.size();
      }
    counts.messages = std::max(counts.messages, messages);
    counts.share = std::max(counts.share, static_cast<double>(chunks) / schedule.chunks);
  }
  counts.rounds = static_cast<int>(std::lround(predict_seconds(schedule, 0, {.alpha = 1})));
  return counts;
}

}  // namespace ringred
