// The sequencer of one group: it decides the order in which the group's operations run, see shared.h. It runs in the
// engine of the group's first rank.
//
// Invariant: an operation enters the log once, after every member has submitted it or joined; two that every member
// submitted are never in different orders on different members, since all follow the log.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "csrc/queue/announcements.h"
#include "csrc/queue/layout.h"
#include "csrc/queue/names.h"
#include "csrc/queue/nodes.h"
#include "csrc/queue/shared.h"

namespace ringred {

class Sequencer {
 public:
  Sequencer(std::vector<GroupBlock*> blocks, const Nodes& nodes, GroupLayout layout, std::size_t fusion_bytes);

  // Reads what members of this node have submitted since, and appends to the log what is agreed. Returns whether the
  // log has grown.
  bool advance();

  // Takes what members of another node have submitted: a message of announcements.h.
  void hear(std::span<const std::byte> message);

  // Whether a name waits for some member.
  bool waits() const { return open_ > 0 || joined_count_ > 0; }
  // Whether what is ready waits for room in the log.
  bool is_held_up() const { return !ready_.empty(); }

  // Fails a name that waits: those who have submitted it get the error. Returns whether it waits.
  bool fail(const NameHash& name, const std::string& text);

 private:
  // How many records may be agreed on but not finished here: one runs, one follows without a pause; what is ready
  // later has time to be fused.
  static constexpr std::uint64_t ahead = 2;
  static constexpr std::uint32_t all_joined = 0xffffffff;  // in ready_: every member has joined

  // One name that some member has submitted.
  struct Name {
    std::uint32_t submitted = 0;  // by how many
    bool ready = false;
  };

  void take(std::size_t member, std::uint32_t number);
  void take_join(std::size_t member, const Submission& submitted, std::uint32_t number);
  void check_ready(std::uint32_t name);
  void note_lateness(std::uint32_t name);
  bool log_has_room() const;
  void append_next();
  void append_batch(std::uint32_t first);
  void append_failure(std::uint32_t name, const std::string& text);
  void append_joined();
  void forget(std::uint32_t name);

  bool has(std::uint32_t name, std::size_t member) const { return number_of(name, member) != LogRecord::no_number; }
  std::uint32_t number_of(std::uint32_t name, std::size_t member) const { return numbers_[name * size_ + member]; }
  const Submission& submission(std::size_t member, std::uint32_t number) const;
  const Submission& any_submission(std::uint32_t name) const;  // of the first member that submitted it
  bool same_members(std::uint32_t one, std::uint32_t other) const;
  std::string problem_of(std::uint32_t name) const;  // empty: none
  std::string mismatch_text(std::uint32_t name) const;
  std::string absent_text(std::uint32_t name) const;
  int rank_of(std::size_t member) const { return blocks_.front()->ranks[member]; }  // of the world
  LogRecord& next_record();
  void publish();
  void add_to(LogRecord& record, std::uint32_t name);

  const std::vector<GroupBlock*> blocks_;
  const Nodes& nodes_;
  const GroupLayout layout_;
  const std::size_t size_, fusion_bytes_;
  std::vector<std::uint64_t> heads_;  // how much of each member's ring has been read
  FarSubmissions far_;
  NameTable names_;
  std::vector<Name> pending_;           // by name
  std::vector<std::uint32_t> numbers_;  // by name and member: the member's number of it
  std::size_t open_ = 0;                // names that are not ready
  std::deque<std::uint32_t> ready_;
  std::vector<std::uint32_t> joined_;  // by member: the number of its join
  std::vector<bool> allows_;           // by member: what its join says, see Entry
  std::size_t joined_count_ = 0, last_joined_ = 0;
};

}  // namespace ringred
