#include "csrc/schedule/verify.h"

#include <algorithm>
#include <random>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/schedule/symbols.h"

namespace ringred {
namespace {

struct Flaw {
  std::string text;
};

// Where a lane stands.
struct Head {
  int rank;
  int lane;
  const Lane* steps;
  std::size_t number = 0;  // of the step
  std::size_t sent = 0;
  std::size_t taken = 0;
  std::optional<RankSet> arrived = {};  // taken from the channel, not yet written

  const Step& step() const { return (*steps)[number]; }
  bool ended() const { return number == steps->size(); }
  bool step_done() const { return sent == step().out.size() && taken == step().in.size(); }
};

std::size_t at(int number) {
  return static_cast<std::size_t>(number);
}
std::string text(int number) {
  return std::to_string(number);
}
std::string text(const Head& head) {
  return "rank " + text(head.rank) + ", lane " + text(head.lane) + ", step " + std::to_string(head.number);
}

class Execution {
 public:
  Execution(const Schedule& schedule, const Channel& channel, std::uint32_t seed, const PlayerRules& rules);
  void run();

 private:
  bool poll(Head& head);
  bool send_one(Head& head);
  bool take_one(Head& head);
  bool may_write(const Head& head, int chunk) const;
  void write(Head& head, int chunk);
  RankSet checked(const Head& head, int chunk, const Symbols::Message& message) const;
  bool awaits_own_lane(const Head& head) const;
  bool chance(unsigned percent) { return random_() % 100 < percent; }
  void check_result();
  std::string stuck() const;

  const Schedule& schedule_;
  const PlayerRules& rules_;
  std::minstd_rand random_;
  Symbols symbols_;
  std::vector<std::vector<Head>> heads_;  // by rank, then lane
};

Execution::Execution(const Schedule& schedule, const Channel& channel, std::uint32_t seed, const PlayerRules& rules)
    : schedule_(schedule), rules_(rules), random_(seed + 1), symbols_(schedule.size, schedule.chunks, channel) {
  for (int rank = 0; rank < schedule.size; ++rank) {
    heads_.emplace_back();
    for (const Lane& lane : schedule.ranks[at(rank)])
      heads_.back().push_back({rank, static_cast<int>(heads_.back().size()), &lane});
  }
}

// Lanes take turns in random order, each some pieces at a time, until a whole round moves nothing.
void Execution::run() {
  std::vector<Head*> live;
  for (std::vector<Head>& heads : heads_)
    for (Head& head : heads) live.push_back(&head);
  for (;;) {
    std::erase_if(live, [](const Head* head) { return head->ended(); });
    if (live.empty()) break;
    std::shuffle(live.begin(), live.end(), random_);
    bool moved = false;
    for (Head* head : live) {
      const int turns = chance(50) ? 1 : chance(50) ? 2 : 8;
      for (int turn = 0; turn < turns && !head->ended() && poll(*head); ++turn) moved = true;
    }
    if (!moved) throw Flaw{"deadlock: " + stuck()};
  }
  check_result();
}

// One small piece of progress in each direction; false where neither could move.
bool Execution::poll(Head& head) {
  if (awaits_own_lane(head)) return false;
  bool moved = head.sent < head.step().out.size() && send_one(head);
  if (head.taken < head.step().in.size() && (!moved || chance(70))) moved |= take_one(head);
  if (!head.step_done()) return moved;
  ++head.number;
  head.sent = head.taken = 0;
  return true;
}

bool Execution::awaits_own_lane(const Head& head) const {
  const std::vector<Dependency>& after = head.step().after;
  return std::any_of(after.begin(), after.end(), [&](const Dependency& dependency) {
    return heads_[at(head.rank)].at(at(dependency.lane)).number <= at(dependency.step);
  });
}

bool Execution::send_one(Head& head) {
  if (!symbols_.send({head.rank, head.step().to, head.lane}, head.step().out[head.sent], head.sent == 0)) return false;
  ++head.sent;
  return true;
}

bool Execution::take_one(Head& head) {
  const int chunk = head.step().in[head.taken];
  bool moved = false;
  if (!head.arrived)
    if (const auto message = symbols_.take({head.step().from, head.rank, head.lane})) {
      head.arrived = checked(head, chunk, *message);
      moved = true;
    }
  if (!head.arrived || !may_write(head, chunk)) return moved;
  write(head, chunk);
  return true;
}

RankSet Execution::checked(const Head& head, int chunk, const Symbols::Message& message) const {
  const std::string sender = " from rank " + text(head.step().from);
  if (message.chunk != chunk)
    throw Flaw{text(head) + " wants chunk " + text(chunk) + sender + " and gets chunk " + text(message.chunk)};
  if (message.opens != (head.taken == 0))
    throw Flaw{text(head) + " takes chunk " + text(chunk) + sender + ", which cuts its messages elsewhere"};
  return *message.value;
}

bool Execution::may_write(const Head& head, int chunk) const {
  if (rules_.write_after_read && symbols_.unread(head.rank, chunk)) return false;
  const std::vector<int>& out = head.step().out;
  const auto unsent = out.begin() + static_cast<std::ptrdiff_t>(head.sent);
  return !rules_.in_behind_out || std::find(unsent, out.end(), chunk) == out.end();
}

void Execution::write(Head& head, int chunk) {
  if (symbols_.unread(head.rank, chunk))
    throw Flaw{text(head) + " overwrites chunk " + text(chunk) + ", which a peer has yet to read"};
  RankSet& mine = symbols_.value(head.rank, chunk);
  if (head.step().act == Act::reduce) {
    if ((mine & *head.arrived).any())
      throw Flaw{"double count: " + text(head) + " adds to chunk " + text(chunk) +
                 " ranks that are in it already, from rank " + text(head.step().from)};
    *head.arrived |= mine;
  }
  mine = *head.arrived;
  head.arrived.reset();
  ++head.taken;
}

void Execution::check_result() {
  for (int rank = 0; rank < schedule_.size; ++rank)
    for (int chunk = 0; chunk < schedule_.chunks; ++chunk) {
      const std::size_t count = symbols_.value(rank, chunk).count();
      if (count != at(schedule_.size))
        throw Flaw{"incomplete: rank " + text(rank) + " ends with " + std::to_string(count) + " of " +
                   text(schedule_.size) + " ranks in chunk " + text(chunk)};
    }
  for (const auto& [ends, messages] : symbols_.queues()) {
    const auto& [from, to, lane] = ends;
    if (!messages.empty())
      throw Flaw{"unconsumed: rank " + text(to) + " never takes chunk " + text(messages.front().chunk) + " that rank " +
                 text(from) + " sent on lane " + text(lane)};
  }
}

std::string Execution::stuck() const {
  const std::size_t enough = 300;  // characters: the first ranks tell the story
  std::string all;
  for (const std::vector<Head>& heads : heads_)
    for (const Head& head : heads) {
      if (head.ended() || all.size() > enough) continue;
      const Step& step = head.step();
      all += (all.empty() ? "" : "; ") + text(head);
      if (awaits_own_lane(head)) all += " waits for another lane";
      if (head.sent < step.out.size())
        all += " has yet to send chunk " + text(step.out[head.sent]) + " to rank " + text(step.to);
      if (head.taken < step.in.size())
        all += " has yet to take chunk " + text(step.in[head.taken]) + " from rank " + text(step.from);
    }
  return all;
}

}  // namespace

std::optional<std::string> find_flaw(const Schedule& schedule, const Channel& channel, std::uint32_t seed,
                                     const PlayerRules& rules) {
  if (schedule.size > largest_verified_size)
    fail_usage("a schedule can be verified for at most " + text(largest_verified_size) + " ranks: it has " +
               text(schedule.size));
  try {
    Execution(schedule, channel, seed, rules).run();
    return std::nullopt;
  } catch (const Flaw& flaw) {
    return schedule.algorithm + " on " + text(schedule.size) + " ranks (" + std::string(channel.name) +
           "): " + flaw.text;
  }
}

void verify(const Schedule& schedule, std::uint32_t seed) {
  for (const Channel& channel : channels)
    if (const auto flaw = find_flaw(schedule, channel, seed)) fail_usage("a schedule must be right: " + *flaw);
}

}  // namespace ringred
