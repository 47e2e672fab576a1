#include "csrc/schedule/simulate.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "csrc/base/error.h"

namespace ringred {
namespace {

std::size_t at(int number) {
  return static_cast<std::size_t>(number);
}

struct Link {
  double free = 0;  // when it has served all that reached it so far
  double busy = 0;  // seconds
  double bytes = 0;
};

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

struct Message {
  int from;           // the rank that the taker knows
  int sender, taker;  // players
  double bytes;
  double last;  // when the last byte has passed the links so far
  LinkKind next;
  double delay;  // from the turn on the link before until the next one
};

// Ordered by time; at the same time by what happens and to whom, which is the same in all units.
struct Event {
  enum class Kind : std::uint8_t { arrival, link, lane };
  double time;
  Kind kind;
  int order;   // the player at whose end it happens
  int number;  // of the message or the player

  friend bool operator>(const Event& left, const Event& right) {
    if (left.time != right.time) return left.time > right.time;
    if (left.kind != right.kind) return left.kind > right.kind;
    return left.order != right.order ? left.order > right.order : left.number > right.number;
  }
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
  void reach(int number);
  double serve(Link& link, double beta, Message& message);
  int image(int sender, int to) const;
  Link& link(LinkKind kind, int rank);
  void push(double time, Event::Kind kind, int order, int number) { events_.push({time, kind, order, number}); }
  int node(int rank) const { return rank / hardware_.local; }
  bool has_core() const { return hardware_.nodes_per_switch > 0; }
  int index(const Player& player) const { return static_cast<int>(&player - players_.data()); }
  LinkLoad load(LinkKind kind) const;

  const Outline& outline_;
  const Hardware& hardware_;
  double chunk_bytes_;
  int unit_;  // ranks that are played
  double now_ = 0;
  double messages_sent_ = 0;
  std::size_t steps_left_ = 0;
  std::vector<Player> players_;
  std::vector<int> first_player_;  // by rank: its lane 0; one more at the end
  std::vector<double> processor_;  // by rank: when it is free
  std::array<std::vector<Link>, link_kind_names.size()> links_;
  std::vector<Message> messages_;
  std::vector<int> free_messages_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
};

Simulation::Simulation(const Outline& outline, double bytes, const Hardware& hardware)
    : outline_(outline),
      hardware_(hardware),
      chunk_bytes_(bytes / outline.chunks),
      unit_(static_cast<int>(outline.ranks.size())),
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
  const int nodes = unit_ / hardware.local;
  for (LinkKind kind : {LinkKind::memory, LinkKind::card_out, LinkKind::card_in})
    links_[at(int(kind))].resize(at(nodes));
  if (has_core())
    for (LinkKind kind : {LinkKind::core_up, LinkKind::core_down})
      links_[at(int(kind))].resize(at((nodes + hardware.nodes_per_switch - 1) / hardware.nodes_per_switch));
}

Simulated Simulation::run() {
  for (const Player& player : players_)
    if (!player.ended()) push(0, Event::Kind::lane, index(player), index(player));
  while (!events_.empty()) {
    const Event event = events_.top();
    events_.pop();
    now_ = event.time;
    handle(event);
  }
  if (steps_left_ > 0) fail_usage("a schedule must end: " + std::to_string(steps_left_) + " steps wait for ever");
  Simulated result{.seconds = now_, .messages = messages_sent_ * outline_.size / unit_};
  for (std::size_t kind = 0; kind < links_.size(); ++kind) result.loads[kind] = load(static_cast<LinkKind>(kind));
  return result;
}

void Simulation::handle(const Event& event) {
  switch (event.kind) {
    case Event::Kind::arrival:
      return arrive(event.number);
    case Event::Kind::link:
      return reach(event.number);
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
  push(until, Event::Kind::lane, index(player), index(player));
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
      push(now_, Event::Kind::lane, waiter, waiter);
    else
      other.next_waiter = std::exchange(player.first_waiter, waiter);
    waiter = next;
  }
}

// The rank that the taker in the unit knows the sender by: who sends to it as `sender` sends to `to`.
int Simulation::image(int sender, int to) const {
  const int taker = to % unit_, size = outline_.size;
  switch (outline_.symmetry) {
    case Symmetry::none:
      return sender;
    case Symmetry::shift:
      return ((sender - to + taker) % size + size) % size;
    case Symmetry::exclusive_or:
      return (node(sender) ^ node(to) ^ node(taker)) * hardware_.local + sender % hardware_.local;
  }
  return sender;
}

Link& Simulation::link(LinkKind kind, int rank) {
  const bool of_switch = kind == LinkKind::core_up || kind == LinkKind::core_down;
  return links_[static_cast<std::size_t>(kind)][at(of_switch ? node(rank) / hardware_.nodes_per_switch : node(rank))];
}

// The time at which the message's turn comes.
double Simulation::serve(Link& link, double beta, Message& message) {
  const double start = std::max(now_, link.free), seconds = beta * message.bytes;
  link.free = start + seconds;
  link.busy += seconds;
  link.bytes += message.bytes;
  message.last = std::max(message.last + message.delay, link.free);
  return start;
}

// Sends the step's message as far as its first link; the events of the others follow.
void Simulation::post(Player& player) {
  const OutlineStep& step = player.now();
  const int taker_rank = step.to % unit_;
  const int taker = first_player_[at(taker_rank)] + player.number;
  if (taker >= first_player_[at(taker_rank) + 1]) fail_usage("a message needs a lane that takes it");
  if (free_messages_.empty()) {
    free_messages_.push_back(static_cast<int>(messages_.size()));
    messages_.emplace_back();
  }
  const int number = free_messages_.back();
  free_messages_.pop_back();
  Message& message = messages_[at(number)];
  message = {image(player.rank, step.to), index(player), taker, chunk_bytes_ * step.out, now_, LinkKind::card_in, 0};
  ++messages_sent_;
  if (node(player.rank) == node(step.to)) {
    serve(link(LinkKind::memory, player.rank), hardware_.memory.beta, message);
    push(message.last + hardware_.memory.alpha, Event::Kind::arrival, taker, number);
  } else {
    const bool climbs =
        has_core() && node(player.rank) / hardware_.nodes_per_switch != node(step.to) / hardware_.nodes_per_switch;
    if (climbs) message.next = LinkKind::core_up;
    const double start = serve(link(LinkKind::card_out, player.rank), hardware_.card.beta, message);
    message.delay = hardware_.card.alpha;
    push(start + hardware_.card.alpha, Event::Kind::link, climbs ? message.sender : taker, number);
  }
  player.sent = message.last;
}

void Simulation::arrive(int number) {
  const Message& message = messages_[at(number)];
  Player& taker = players_[at(message.taker)];
  taker.inbox.push_back(message.from);
  free_messages_.push_back(number);
  if (!taker.ended() && taker.phase == Phase::taking) go_on(taker);
}

// A message's first byte reaches a link that is not its first.
void Simulation::reach(int number) {
  Message& message = messages_[at(number)];
  const int sender = players_[at(message.sender)].rank, taker = players_[at(message.taker)].rank;
  switch (message.next) {
    case LinkKind::core_up: {
      const double start = serve(link(LinkKind::core_up, sender), hardware_.core.beta, message);
      message.next = LinkKind::core_down;
      message.delay = hardware_.core.alpha;
      return push(start + message.delay, Event::Kind::link, message.taker, number);
    }
    case LinkKind::core_down: {
      const double start = serve(link(LinkKind::core_down, taker), hardware_.core.beta, message);
      message.next = LinkKind::card_in;
      message.delay = 0;
      return push(start, Event::Kind::link, message.taker, number);
    }
    default:
      serve(link(LinkKind::card_in, taker), hardware_.card.beta, message);
      return push(message.last, Event::Kind::arrival, message.taker, number);
  }
}

LinkLoad Simulation::load(LinkKind kind) const {
  const std::vector<Link>& links = links_[static_cast<std::size_t>(kind)];
  const double copies = static_cast<double>(outline_.size) / unit_;
  LinkLoad load{.links = static_cast<int>(static_cast<double>(links.size()) * copies)};
  for (const Link& one : links) {
    load.bytes += one.bytes * copies;
    if (now_ == 0) continue;
    load.busiest = std::max(load.busiest, one.busy / now_);
    load.mean += one.busy / now_ / static_cast<double>(links.size());
  }
  return load;
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
