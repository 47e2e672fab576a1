// Members on other nodes: what this member tells them of itself, and what it keeps here of them.
//
// A member has a mirror of its GroupBlock on every other node of the group, in the segment of the member that keeps it
// there (Nodes::keeper). Whoever shares a node with the keeper reads the mirror as it reads its neighbours' blocks, so
// all that is said in shared.h and turns.h holds across nodes, too. Every word has one writer, hence mirrors need no
// agreement, only order:
//   1. What a member has written for others goes out as notes, one stream to each keeper: a stretch of its block or
//      none, and the words as they stood when this and all before were complete.
//   2. The keeper stores the stretch into the mirror, then the words (seq_cst), and rings the members of its node that
//      wait for one of them.
// Words in a mirror may be behind; they are never ahead of the data that they speak of. Words of different members may
// arrive in another order than they were raised in: whoever waits looks at each member's word, and infers none from
// another's.
//
// What members submit matters to the sequencer alone, and reaches it past the mirrors (announcements.h). A mirror's
// table of names is for deadlines: it has the names for which its member has waited for long.
//
// Packets of schedules (columns.h) go the same way and are stored nowhere in mirrors: Packets keeps them for the
// players. They tell no words.
//
// A note of more than `inline_bytes` is two messages; the second is received where it belongs and sent from where it
// lies, so that slots are not copied once more. A slot may be filled again when it has been sent (is_sending) and all
// members have left it, which the words tell.
//
// Invariant: all calls but construction and destruction, which leave the network alone, are the driver's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "csrc/link/network.h"
#include "csrc/memory/arena.h"
#include "csrc/queue/layout.h"
#include "csrc/queue/nodes.h"
#include "csrc/queue/packets.h"
#include "csrc/queue/shared.h"

namespace ringred {

class Announcer;
class Sequencer;

class Mirrors {
 public:
  static constexpr std::size_t inline_bytes = (16 << 10) + 64;  // a part of a short call and its head, see opening.h

  struct Setup {
    Network* network;
    int tag;
    int index;                             // of this member
    std::vector<int> ranks;                // of the world, by member
    std::vector<GroupBlock*> blocks;       // by member: its own block, or its mirror on this node
    std::shared_ptr<Arena::Block> memory;  // in which this member's block and the mirrors that it keeps lie
    GroupLayout layout;
    Sequencer* sequencer;  // if this member has it
    Packets* packets;      // those that come
  };
  Mirrors(Setup setup, const Nodes& nodes);
  ~Mirrors();
  Mirrors(const Mirrors&) = delete;
  Mirrors& operator=(const Mirrors&) = delete;

  // Stores what has come, and adds to `events` what is new (bits of Event). Returns whether anything was.
  bool take(std::uint32_t& events);

  // A stretch of this member's block for the members of a node. `last`: with it the words hold as they are now.
  void send(int node, std::size_t offset, std::size_t bytes, bool last);

  // A packet for the member of the same place on another node.
  void send(int node, std::unique_ptr<Packet> packet);

  // Tells all nodes what they do not know yet: new records of the log, words. Returns whether there was something.
  // `local`: events that no other node waits for.
  bool tell(std::uint32_t local);

  // Sends the sequencer what is to be announced. Only the first member of a node: the sequencer keeps its mirror.
  void announce(Announcer& announcer);

  // Tells all nodes that operations of these numbers wait.
  void tell_waiting(const std::vector<std::uint32_t>& numbers);

  // Tells all nodes the words as they are, also those that nobody waits for.
  void tell_late();

  // This member is through with a record of the log: so many more operations of the members that it keeps are over.
  void finish(const LogRecord& record);

  // As tell(), with why this member takes no further part. Nothing is taken after it.
  void depart();

  // Whether a slot is still being sent, of the turns that share it; and whether anything is.
  bool is_sending(std::uint64_t turn) const { return slots_sending_[turn % GroupLayout::slots] > 0; }
  bool is_sending() const { return !sending_.empty(); }
  void recycle();  // what has been sent

 private:
  // `left`: the least of all members of the own node, so that one of them speaks for all.
  struct Words {
    std::uint64_t logged, copied, combined, reduced, left, consumed;
    std::uint32_t joined, departed;
    friend bool operator==(const Words&, const Words&) = default;
  };
  enum class Kind : std::uint64_t { stretch, record, waiting, announcements, packet };
  // What follows it is a stretch of the block, which may be a record of the log; or several of Waiting; or a packet,
  // whose key is the offset; or see announcements.h.
  struct Note {
    Words words;
    std::uint64_t offset, bytes;
    Kind kind;
  };
  struct Waiting {
    std::uint64_t hash[2], number, submissions;
  };
  struct Outgoing {
    Transfer head, body;
    int slot = -1;                   // from which the body is sent
    std::unique_ptr<Packet> packet;  // the same
    std::vector<std::byte> bytes;
  };
  struct Incoming {
    int member;
    Transfer transfer;
    bool body = false;               // the rest of the note is what comes next
    std::unique_ptr<Packet> packet;  // into which it comes, if it is one
    std::vector<std::byte> bytes;
  };

  Words words() const;
  std::uint64_t left_by_all_here() const;
  void send_stretch(int node, Kind kind, std::size_t offset, std::size_t bytes, const Words& words);
  Outgoing& send_note(int node, const Note& note, const std::byte* data);
  bool is_due(const Words& now, const Words& told, std::uint32_t local) const;
  void tell_records();
  void await_note(Incoming& incoming);
  bool take_note(Incoming& incoming, std::uint32_t& events);
  std::byte* place_of(Incoming& incoming, const Note& note);
  void check(const Incoming& incoming, const Note& note) const;
  void store_waiting(int member, std::span<const std::byte> bytes);
  void note_finished(const Incoming& incoming, std::uint32_t number);
  void commit(int member, std::uint32_t entry);
  void commit_slots(int member, std::size_t offset, std::size_t bytes);
  static std::uint32_t store_words(GroupBlock& block, const Words& words);
  std::byte* bytes_of(int member) const { return reinterpret_cast<std::byte*>(block(member)); }
  GroupBlock* block(int member) const { return setup_.blocks[static_cast<std::size_t>(member)]; }
  int slot_of(std::size_t offset) const;

  const Setup setup_;
  const Nodes& nodes_;
  GroupBlock& mine_;
  std::uint64_t told_logged_ = 0;
  std::vector<Words> told_;  // by node
  std::vector<std::unique_ptr<Outgoing>> sending_, spare_;
  std::array<int, GroupLayout::slots> slots_sending_{};
  std::vector<std::unique_ptr<Incoming>> kept_;
  std::vector<std::size_t> committed_;     // by member: how many bytes of its mirror's table of names
  std::vector<std::vector<bool>> exists_;  // by member: which units of its mirror's slots
  bool listens_ = false, over_ = false;
};

}  // namespace ringred
