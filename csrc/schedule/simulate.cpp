#include "csrc/schedule/simulate.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/schedule/traffic.h"

namespace ringred {
namespace {

std::size_t at(int number) {
  return static_cast<std::size_t>(number);
}

// Where a step stands. A lane in `ready` waits for other lanes, in `taking` for a message, otherwise for its event.
enum class Phase : std::uint8_t { ready, taking, working, draining, ending };

struct Player {
  const OutlineLane* lane = nullptr;
  int rank = 0;  // in the unit
  int number = 0;
  std::size_t step = 0;
  Phase phase = Phase::ready;
  int first_waiter = -1;     // of the lanes of the rank that wait for a step of this one: a chain of players
  int next_waiter = -1;      // in the chain that this one is in
  std::size_t awaited = 0;   // the step for which it is in a chain
  double sent = 0;           // when the step's message has left its first link
  std::vector<int> inbox{};  // senders of messages that came and were not taken, oldest first

  bool ended() const { return step == lane->steps.size(); }
  const OutlineStep& now() const { return lane->steps[step]; }
};

class Simulation {
 public:
  Simulation(const Outline& outline, double bytes, const Hardware& hardware);
  Simulated run();

 private:
  void handle(const Event& event);
  void go_on(Player& player);
  bool waits_for_lane(Player& player);
  bool sleeps(const Player& player, double until);
  double work(const Player& player);
  bool take(Player& player);
  void end_step(Player& player);
  void post(Player& player);
  void arrive(int number);
  void wake(int player, double time) { events_.push({time, Event::Kind::lane, player, player}); }
  int index(const Player& player) const { return static_cast<int>(&player - players_.data()); }

  const Outline& outline_;
  const Hardware& hardware_;
  double chunk_bytes_;
  int unit_;  // ranks that are played
  Events events_;
  Traffic traffic_;
  double now_ = 0;
  std::size_t steps_left_ = 0;
  std::vector<Player> players_;
  std::vector<int> first_player_;  // by rank: its lane 0; one more at the end
  std::vector<double> processor_;  // by rank: when it is free
};

Simulation::Simulation(const Outline& outline, double bytes, const Hardware& hardware)
    : outline_(outline),
      hardware_(hardware),
      chunk_bytes_(bytes / outline.chunks),
      unit_(static_cast<int>(outline.ranks.size())),
      traffic_(outline, hardware, events_),
      processor_(at(unit_)) {
  for (int rank = 0; rank < unit_; ++rank) {
    first_player_.push_back(static_cast<int>(players_.size()));
    int number = 0;
    for (const OutlineLane& lane : outline.ranks[at(rank)]) {
      players_.push_back({.lane = &lane, .rank = rank, .number = number++});
      steps_left_ += lane.steps.size();
    }
  }
  first_player_.push_back(static_cast<int>(players_.size()));
}

Simulated Simulation::run() {
  for (const Player& player : players_)
    if (!player.ended()) wake(index(player), 0);
  while (!events_.empty()) {
    const Event event = events_.top();
    events_.pop();
    now_ = event.time;
    handle(event);
  }
  if (steps_left_ > 0) fail_usage("a schedule must end: " + std::to_string(steps_left_) + " steps wait for ever");
  Simulated result{.seconds = now_, .messages = traffic_.sent() * outline_.size / unit_};
  for (std::size_t kind = 0; kind < result.loads.size(); ++kind)
    result.loads[kind] = traffic_.load(static_cast<LinkKind>(kind), now_);
  return result;
}

void Simulation::handle(const Event& event) {
  switch (event.kind) {
    case Event::Kind::arrival:
      return arrive(event.number);
    case Event::Kind::link:
      return traffic_.reach(now_, event.number);
    case Event::Kind::lane:
      return go_on(players_[at(event.number)]);
  }
}

// Through the phases of one step after the other, until the lane has to wait.
void Simulation::go_on(Player& player) {
  while (!player.ended()) {
    const OutlineStep& step = player.now();
    switch (player.phase) {
      case Phase::ready:
        if (waits_for_lane(player)) return;
        player.sent = now_;
        if (step.to >= 0) post(player);
        player.phase = Phase::taking;
        break;
      case Phase::taking:
        if (step.from >= 0 && !take(player)) return;
        player.phase = Phase::working;
        if (step.same_chunks && sleeps(player, player.sent)) return;
        break;
      case Phase::working:
        player.phase = Phase::draining;
        if (sleeps(player, work(player))) return;
        break;
      case Phase::draining:
        player.phase = Phase::ending;
        if (sleeps(player, player.sent)) return;
        break;
      case Phase::ending:
        end_step(player);
        break;
    }
  }
}

// If so, it joins the chain of that lane, which wakes it.
bool Simulation::waits_for_lane(Player& player) {
  const OutlineStep& step = player.now();
  for (int number = step.after_begin; number < step.after_begin + step.after_count; ++number) {
    const Dependency& dependency = player.lane->after[at(number)];
    Player& other = players_[at(first_player_[at(player.rank)] + dependency.lane)];
    if (other.step > at(dependency.step)) continue;
    player.awaited = at(dependency.step);
    player.next_waiter = other.first_waiter;
    other.first_waiter = index(player);
    return true;
  }
  return false;
}

bool Simulation::sleeps(const Player& player, double until) {
  if (until <= now_) return false;
  wake(index(player), until);
  return true;
}

// When the rank's processor is done with the step.
double Simulation::work(const Player& player) {
  const OutlineStep& step = player.now();
  const double seconds = hardware_.step + (step.reduces ? hardware_.gamma * chunk_bytes_ * step.in : 0);
  if (seconds == 0) return now_;
  double& free = processor_[at(player.rank)];
  return free = std::max(free, now_) + seconds;
}

bool Simulation::take(Player& player) {
  const auto found = std::find(player.inbox.begin(), player.inbox.end(), player.now().from);
  if (found == player.inbox.end()) return false;
  player.inbox.erase(found);
  return true;
}

void Simulation::end_step(Player& player) {
  ++player.step;
  --steps_left_;
  player.phase = Phase::ready;
  for (int waiter = std::exchange(player.first_waiter, -1); waiter >= 0;) {
    Player& other = players_[at(waiter)];
    const int next = other.next_waiter;
    if (other.awaited < player.step)
      wake(waiter, now_);
    else
      other.next_waiter = std::exchange(player.first_waiter, waiter);
    waiter = next;
  }
}

void Simulation::post(Player& player) {
  const OutlineStep& step = player.now();
  const std::size_t taker_rank = at(step.to % unit_);
  const int taker = first_player_[taker_rank] + player.number;
  if (taker >= first_player_[taker_rank + 1])
    fail_usage("a message needs a lane that takes it: rank " + std::to_string(step.to) + " has no lane " +
               std::to_string(player.number));
  player.sent = traffic_.post(now_, player.rank, step.to, index(player), taker, chunk_bytes_ * step.out);
}

void Simulation::arrive(int number) {
  const Message& message = traffic_.arrive(number);
  Player& taker = players_[at(message.taker)];
  taker.inbox.push_back(message.from);
  if (!taker.ended() && taker.phase == Phase::taking) go_on(taker);
}

}  // namespace

Simulated simulate(const Outline& outline, double bytes, const Hardware& hardware) {
  const int unit = static_cast<int>(outline.ranks.size());
  const int whole = hardware.local * std::max(1, hardware.nodes_per_switch);
  const bool fits = outline.symmetry == Symmetry::none ? unit == outline.size && unit % hardware.local == 0
                                                       : unit > 0 && outline.size % unit == 0 && unit % whole == 0;
  if (!fits)
    fail_usage("a simulation plays all ranks of whole nodes, or those of whole switches that stand for all: it got " +
               std::to_string(unit) + " of " + std::to_string(outline.size) + " ranks, " +
               std::to_string(hardware.local) + " on a node");
  return Simulation(outline, bytes, hardware).run();
}

}  // namespace ringred
