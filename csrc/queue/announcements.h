// How a node tells the sequencer of another one what its members have submitted: all of them in one message.
//
//   1. The first member of a node, its announcer, reads the rings of the node's members, as the sequencer reads those
//      of its own node (shared.h). What it has read it holds back while every name among it lacks a member of the node:
//      no operation can run without that one. As soon as all have submitted a name, or have joined, it announces all
//      that it holds back, of all names.
//   2. Announcements reach the sequencer in the order in which they were sent, those of a member in the order in which
//      it submitted. It keeps them in memory of its own: nobody else reads them.
// Nobody waits for an announcer that is busy elsewhere and would otherwise go on: no operation runs without its own
// submission (or join), and none that moves data ends before it drives its engine. Who submits rings it, as on the
// sequencer's node.
//
// A name counts as a member's from when it is read to when the announcer is through with the log's record of it.
// Neighbours that are through with that record may have submitted the name anew, so it is counted. What counts too long
// costs a message; nothing counts too short, hence nothing is held back that could run.
//
// Who waits in vain is of interest, too, to the sequencer where it fails a name and to deadlines on all nodes. What is
// held back for longer than `patience` is announced as it is, whenever the announcer is driven; members that wait ring
// it from time to time (Group::look). And each member that waits for long tells all nodes so itself, see mirrors.h.
//
// Invariant: what a member submits is announced once; what the sequencer refers to stays as it is until the operation
// is in the log.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "csrc/queue/layout.h"
#include "csrc/queue/names.h"
#include "csrc/queue/shared.h"

namespace ringred {

// In a message; followed by the submission, if it is not what was announced last of that member's number.
struct Announcement {
  std::uint32_t member, number;
  std::uint32_t is_new, unused;
  std::int64_t age;  // how long before the message it was submitted: clocks of different machines are not compared
};

class Announcer {
 public:
  static constexpr std::int64_t patience = 100'000'000;

  // `members`: of this node.
  Announcer(std::vector<GroupBlock*> blocks, std::vector<int> members, GroupLayout layout);

  // Reads what the members have submitted since. Returns whether it is to be announced now.
  bool advance();

  // The next of the messages that announce it, of at most `room` bytes. Empty: all is announced.
  std::span<const std::byte> next_message(std::size_t room);

  // This member is through with a record of the log.
  void finish(const LogRecord& record);

 private:
  static constexpr std::uint32_t join = 0xffffffff;  // in place of a name

  // What was announced last under a number.
  struct Identity {
    std::uint64_t hash[2] = {}, fingerprint = 0;
    friend bool operator==(const Identity&, const Identity&) = default;
  };
  struct Number {
    std::vector<std::uint32_t> names;  // those that it stands for in operations under way, the oldest first
    Identity announced;
  };

  void take(std::size_t place, std::uint32_t number);
  bool is_complete(std::uint32_t name) const;
  void end(std::size_t place, std::uint32_t number);
  bool append(std::size_t place, std::uint32_t number, std::size_t room, std::int64_t now);
  const Submission& submission(std::size_t place, std::uint32_t number) const;

  const std::vector<GroupBlock*> blocks_;
  const std::vector<int> members_;
  const GroupLayout layout_;
  std::vector<std::uint64_t> heads_;          // by place among the members: how much of the ring has been read
  std::vector<std::vector<Number>> numbers_;  // by place and number
  NameTable names_;
  std::vector<std::uint32_t> under_way_;                         // by name and place: how many operations
  std::vector<std::uint32_t> joined_;                            // by place
  std::deque<std::pair<std::size_t, std::uint32_t>> held_back_;  // place and number
  std::int64_t held_back_since_ = 0;
  bool due_ = false;
  std::vector<std::byte> message_;
};

// What the sequencer knows of members of other nodes.
class FarSubmissions {
 public:
  explicit FarSubmissions(std::size_t members) : known_(members) {}

  // Takes the first announcement off a message, and says whose it is, and its number.
  std::pair<std::size_t, std::uint32_t> take(std::span<const std::byte>& message);

  const Submission& of(std::size_t member, std::uint32_t number) const { return known_[member][number]; }

 private:
  std::vector<std::deque<Submission>> known_;  // by member and number
};

}  // namespace ringred
