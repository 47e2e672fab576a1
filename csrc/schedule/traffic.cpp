#include "csrc/schedule/traffic.h"

#include <algorithm>

namespace ringred {
namespace {

std::size_t at(int number) {
  return static_cast<std::size_t>(number);
}
std::size_t at(LinkKind kind) {
  return static_cast<std::size_t>(kind);
}

}  // namespace

Traffic::Traffic(const Outline& outline, const Hardware& hardware, Events& events)
    : outline_(outline), hardware_(hardware), events_(events), unit_(static_cast<int>(outline.ranks.size())) {
  const int nodes = unit_ / hardware.local, below = hardware.nodes_per_switch;
  for (LinkKind kind : {LinkKind::memory, LinkKind::card_out, LinkKind::card_in}) links_[at(kind)].resize(at(nodes));
  if (below > 0)
    for (LinkKind kind : {LinkKind::core_up, LinkKind::core_down})
      links_[at(kind)].resize(at((nodes + below - 1) / below * hardware.uplinks));
}

double Traffic::post(double now, int source, int to, int sender, int taker, double bytes) {
  const int number = new_message(), target = to % unit_;
  Message& message = messages_[at(number)];
  message = {image(source, to), sender, taker, source, target, bytes, now, LinkKind::card_in, 0};
  ++sent_;
  if (node(source) == node(to)) {
    serve(now, LinkKind::memory, source, message);
    events_.push({message.last + hardware_.memory.alpha, Event::Kind::arrival, taker, number});
    return message.last;
  }
  const double start = serve(now, LinkKind::card_out, source, message);
  message.delay = hardware_.card.alpha;
  if (climbs(source, to)) message.next = LinkKind::core_up;
  events_.push({start + message.delay, Event::Kind::link, climbs(source, to) ? sender : taker, number});
  return message.last;
}

void Traffic::reach(double now, int number) {
  Message& message = messages_[at(number)];
  const int rank = message.next == LinkKind::core_up ? message.source : message.target;
  const double start = serve(now, message.next, rank, message);
  if (message.next == LinkKind::card_in) {
    events_.push({message.last, Event::Kind::arrival, message.taker, number});
    return;
  }
  const bool up = message.next == LinkKind::core_up;
  message.next = up ? LinkKind::core_down : LinkKind::card_in;
  message.delay = up ? hardware_.core.alpha : 0;
  events_.push({start + message.delay, Event::Kind::link, message.taker, number});
}

const Message& Traffic::arrive(int number) {
  free_.push_back(number);
  return messages_[at(number)];
}

// The time at which the message's turn comes.
double Traffic::serve(double now, LinkKind kind, int rank, Message& message) {
  Link& link = first_free(kind, rank);
  const double start = std::max(now, link.free), seconds = beta(kind) * message.bytes;
  link.free = start + seconds;
  link.busy += seconds;
  link.bytes += message.bytes;
  message.last = std::max(message.last + message.delay, link.free);
  return start;
}

Traffic::Link& Traffic::first_free(LinkKind kind, int rank) {
  std::vector<Link>& links = links_[at(kind)];
  if (kind != LinkKind::core_up && kind != LinkKind::core_down) return links[at(node(rank))];
  const auto first = links.begin() + node(rank) / hardware_.nodes_per_switch * hardware_.uplinks;
  return *std::min_element(first, first + hardware_.uplinks,
                           [](const Link& left, const Link& right) { return left.free < right.free; });
}

double Traffic::beta(LinkKind kind) const {
  switch (kind) {
    case LinkKind::memory:
      return hardware_.memory.beta;
    case LinkKind::card_out:
    case LinkKind::card_in:
      return hardware_.card.beta;
    case LinkKind::core_up:
    case LinkKind::core_down:
      return hardware_.core.beta;
  }
  return 0;
}

bool Traffic::climbs(int from, int to) const {
  const int below = hardware_.nodes_per_switch;
  return below > 0 && node(from) / below != node(to) / below;
}

// What comes into the unit in place of a message that leaves it: who sends to the rank of the unit with the place of
// `to` as `source` sends to `to`.
int Traffic::image(int source, int to) const {
  const int target = to % unit_, size = outline_.size;
  switch (outline_.symmetry) {
    case Symmetry::none:
      return source;
    case Symmetry::shift:
      return ((source - to + target) % size + size) % size;
    case Symmetry::exclusive_or:
      return (node(source) ^ node(to) ^ node(target)) * hardware_.local + source % hardware_.local;
  }
  return source;
}

int Traffic::new_message() {
  if (free_.empty()) {
    free_.push_back(static_cast<int>(messages_.size()));
    messages_.emplace_back();
  }
  const int number = free_.back();
  free_.pop_back();
  return number;
}

LinkLoad Traffic::load(LinkKind kind, double seconds) const {
  const std::vector<Link>& links = links_[at(kind)];
  const double units = static_cast<double>(outline_.size) / unit_;
  LinkLoad load{.links = static_cast<int>(static_cast<double>(links.size()) * units)};
  for (const Link& one : links) {
    load.bytes += one.bytes * units;
    if (seconds == 0) continue;
    load.busiest = std::max(load.busiest, one.busy / seconds);
    load.mean += one.busy / seconds / static_cast<double>(links.size());
  }
  return load;
}

}  // namespace ringred
