// The links of a simulation, the messages on them, and the queue of events.
//
// Invariant: a link serves messages in the order in which `serve` is called, and it is called in the order of time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

#include "csrc/schedule/simulate.h"

namespace ringred {

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

using Events = std::priority_queue<Event, std::vector<Event>, std::greater<>>;

struct Message {
  int from;            // the rank that the taker knows the sender by
  int sender, taker;   // players
  int source, target;  // ranks of the unit
  double bytes;
  double last;    // when the last byte has passed the links so far
  LinkKind next;  // the link that the first byte reaches next
  double delay;   // from the turn on the link before until then
};

class Traffic {
 public:
  Traffic(const Outline& outline, const Hardware& hardware, Events& events);

  // Puts a message from rank `source` of the unit to rank `to` on its first link. The time when it has left that.
  double post(double now, int source, int to, int sender, int taker, double bytes);
  // A message's first byte reaches its next link.
  void reach(double now, int number);
  // A message has come; its number is free again.
  const Message& arrive(int number);

  double sent() const { return sent_; }
  LinkLoad load(LinkKind kind, double seconds) const;

 private:
  struct Link {
    double free = 0;  // when it has served all that reached it so far
    double busy = 0;  // seconds
    double bytes = 0;
  };

  int node(int rank) const { return rank / hardware_.local; }
  bool climbs(int from, int to) const;
  int image(int source, int to) const;
  int new_message();
  double serve(double now, LinkKind kind, int rank, Message& message);
  Link& first_free(LinkKind kind, int rank);
  double beta(LinkKind kind) const;

  const Outline& outline_;
  const Hardware& hardware_;
  Events& events_;
  int unit_;         // ranks that are played
  double sent_ = 0;  // messages
  std::array<std::vector<Link>, link_kind_names.size()> links_;
  std::vector<Message> messages_;
  std::vector<int> free_;  // messages
};

}  // namespace ringred
