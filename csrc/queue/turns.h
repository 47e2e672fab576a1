// How the members of a group move data: in turns through three staging slots of each, without ever blocking.
//
// A turn has up to four stages on each member:
//   A  copy in: write the own slot. Then raise `copied`.
//   B1 combine, in groups that span nodes and where the movement does it: when all of the own node have copied in,
//      reduce the own columns of their slots into the own slot. Then raise `combined`.
//   B2 reduce: when all have copied in (or, after B1, combined), reduce the own part of all slots into the own slot.
//      Then raise `reduced`. A movement that does not reduce raises neither word: both count turns of the group, so
//      they catch up with the next movement that does.
//      Where the movement plays a schedule, B2 waits for no word: it reads what the own B1 has made, and the schedule's
//      messages, which carry the data themselves (columns.h), do the waiting for other nodes.
//   C  copy out: when all have reduced (or, where a movement does not reduce, copied in), read all slots. Then raise
//      `left`.
// Turns are counted through all movements of a group; turn t uses slot t mod 3. Each word has one writer, is monotone,
// and is raised seq_cst after the stage's last access.
//   1. A(t) overwrites what others read in B(t-3) and C(t-3): it waits until all have left turn t-3. Members of other
//      nodes read mirrors of slots (mirrors.h): it also waits until the own slot has been sent to them. Of each other
//      node the first member tells how many turns all of that node have left. A turn in which a schedule is played
//      has no readers on other nodes, and its A waits for the own node alone.
//   2. B(t) reads what others write in A(t), and writes a part that others write in no stage of turn t and read in C(t)
//      only: it waits for everybody's A(t). In B(t) a member reads only its own part of the others' slots, and writes
//      only its own part of its own slot, which nobody else reads in B(t). The same holds for B1(t) and the columns of
//      the own node, and for B2(t) after B1(t): two_shots.h says why.
//   3. C(t) reads what others write in B(t), or in A(t): it waits for that. Where each node makes its own results, it
//      waits for the members of the own node.
// A member that has nothing to do in B1 and B2 of a turn raises their words at once and touches nothing in them: it
// waits for nobody before C, where it waits for those who had. Every member goes through all turns of all movements,
// also one that has nothing to give or take, so that all count alike. At most two turns are copied in before the first
// of them is reduced: what is staged stays in the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/queue/layout.h"
#include "csrc/queue/shared.h"

namespace ringred {

class Mirrors;
class Nodes;

enum class Stage { none, copy_in, combine, reduce, copy_out };

// Every member's slot of one turn, as a movement sees them.
struct Slots {
  std::vector<std::byte*> of;  // by member
  std::size_t bytes;           // of each
  std::uint64_t turn = 0;      // counted through all movements
};

// A stretch of a slot.
struct Stretch {
  std::size_t offset, bytes;
};

// Joins it with the last one where it follows on it: one note less.
inline void append(std::vector<Stretch>& stretches, const Stretch& stretch) {
  if (!stretches.empty() && stretches.back().offset + stretches.back().bytes == stretch.offset)
    stretches.back().bytes += stretch.bytes;
  else
    stretches.push_back(stretch);
}

// One way to move data, bound to its buffers on this member.
class Movement {
 public:
  virtual ~Movement() = default;
  virtual std::size_t turns() const = 0;  // may grow when turn 0 is copied out, if knows_all() was false
  virtual bool knows_all() const { return true; }
  virtual bool combines() const { return false; }
  virtual bool reduces() const { return false; }
  virtual bool keeps_results() const { return false; }  // what B2 makes is for the own node only

  // Whether B2 begins by playing a schedule across the nodes, in as many calls of play() as that takes; it is over
  // when the answer is true. Also of the next turn, when that has been combined, so that two are under way.
  virtual bool plays() const { return false; }
  virtual bool play(std::size_t, const Slots&) { return true; }
  virtual std::vector<int> waits_for(std::uint64_t /*turn*/) const { return {}; }  // members; as Slots counts turns

  // Whether this member has anything to do in B1 and B2. Else it waits for nobody there.
  virtual bool works() const { return true; }

  // The members of other nodes for whose B1 this member's B2 waits, where results are kept.
  virtual const std::vector<int>& awaited() const { return nobody; }

  // Words that other nodes do not wait for, or that they are told with a stretch: bits of Event. All of them: turns of
  // this movement concern no other node.
  static constexpr std::uint32_t all_local = ~std::uint32_t{0};
  virtual std::uint32_t local_events() const { return 0; }

  virtual void copy_in(std::size_t turn, const Slots& slots) = 0;
  virtual void combine(std::size_t, const Slots&) {}
  virtual void reduce(std::size_t, const Slots&) {}
  virtual void copy_out(std::size_t turn, const Slots& slots) = 0;

  // Whether C writes into memory of the own node's members: nobody is through before they have left the last turn.
  virtual bool copies_out_for_neighbours() const { return false; }

  // What the members of another node need of this member's slot after a stage, appended.
  virtual void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const = 0;

 private:
  inline static const std::vector<int> nobody;
};

class TurnPlayer {
 public:
  // Across nodes with mirrors; on one node `mirrors` is null.
  TurnPlayer(std::vector<GroupBlock*> blocks, int index, GroupLayout layout, const Nodes& nodes, Mirrors* mirrors);

  void start(Movement& movement);

  // Takes one step if one can be taken, and says which. The caller then wakes the other members.
  Stage step();
  bool done() const;
  // Of the movement that is played, or was played last.
  std::uint32_t local_events() const { return local_events_; }
  // Whether the next step here waits for a member of this node that waits for other nodes, and nothing else can happen.
  bool waits_for_relay() const;
  // The turn that comes next here, counted through all movements.
  std::uint64_t turn() const { return first_ + left_; }

  // For which member, and for what, the first step waits that this member has not taken; -1: for nobody, it can be
  // taken. Others may wait too, but for members that are no further: what is awaited always comes first.
  struct Awaited {
    int member;
    Event event;
  };
  Awaited awaits() const;
  // Whether that step waits for this member, be it among others.
  bool awaits(int member) const;

 private:
  using Word = std::atomic<std::uint64_t> GroupBlock::*;

  std::size_t limit() const;
  int lacking(Word word, std::uint64_t count) const;
  int lacking_here(Word word, std::uint64_t count) const;
  int lacking_room() const;
  int lacking_neighbour() const;
  int lacking_input() const;
  int lacking_result() const;
  std::vector<int> far_awaited() const;
  bool may_copy_in() const { return filled_ < limit() && filled_ < reduced_ + 2 && filled_ < left_ + 3; }
  bool slot_is_free() const;
  bool may_combine() const { return movement_->combines() && combined_ < filled_; }
  bool may_reduce() const { return reduced_ < (movement_->combines() ? combined_ : filled_); }
  Word before_reduce() const { return movement_->combines() ? &GroupBlock::combined : &GroupBlock::copied; }
  Word before_copy_out() const { return movement_->reduces() ? &GroupBlock::reduced : &GroupBlock::copied; }
  std::uint64_t room_needed() const { return first_ + filled_ >= 2 ? first_ + filled_ - 2 : 0; }
  const Slots& slots(std::size_t turn);
  bool play();
  void raise(Word word, std::size_t turns);
  void tell(Stage stage, std::size_t turn);

  const std::vector<GroupBlock*> blocks_;
  const std::size_t index_;
  const GroupLayout layout_;
  const Nodes& nodes_;
  Mirrors* const mirrors_;
  Slots slots_;
  std::vector<Stretch> stretches_;
  Movement* movement_ = nullptr;
  std::uint32_t local_events_ = 0;
  std::uint64_t first_ = 0;  // turn of the group that is turn 0 of the movement
  // Turns of the movement that are through with A, B1, B2, C here.
  std::size_t filled_ = 0, combined_ = 0, reduced_ = 0, left_ = 0;
};

}  // namespace ringred
