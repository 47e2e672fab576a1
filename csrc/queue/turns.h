// How the members of a group move data: in turns through three staging slots of each, without ever blocking.
//
// A turn has up to three stages on each member:
//   A  copy in: write the own slot. Then raise `copied`.
//   B  reduce: when all have copied in, combine the own part of all slots into the own slot. Then raise `reduced`.
//   C  copy out: when all have reduced (or, where a movement does not reduce, copied in), read all slots. Then raise
//      `left`.
// Turns are counted through all movements of a group; turn t uses slot t mod 3. Each word has one writer, is monotone,
// and is raised seq_cst after the stage's last access.
//   1. A(t) overwrites what others read in B(t-3) and C(t-3): it waits until all have left turn t-3.
//   2. B(t) reads what others write in A(t), and writes a part that others write in no stage of turn t and read in C(t)
//      only: it waits for everybody's A(t). In B(t) a member reads only its own part of the others' slots, and writes
//      only its own part of its own slot, which nobody else reads in B(t).
//   3. C(t) reads what others write in B(t), or in A(t): it waits for that.
// Every member goes through all turns of all movements, also one that has nothing to give or take, so that all count
// alike. At most two turns are copied in before the first of them is reduced: what is staged stays in the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/queue/layout.h"
#include "csrc/queue/shared.h"

namespace ringred {

// Every member's slot of one turn, as a movement sees them.
struct Slots {
  std::vector<std::byte*> of;  // by member
  std::size_t bytes;           // of each
};

// One way to move data, bound to its buffers on this member.
class Movement {
 public:
  virtual ~Movement() = default;
  virtual std::size_t turns() const = 0;  // may grow when turn 0 is copied out, if knows_all() was false
  virtual bool knows_all() const { return true; }
  virtual bool reduces() const { return false; }
  virtual void copy_in(std::size_t turn, const Slots& slots) = 0;
  virtual void reduce(std::size_t, const Slots&) {}
  virtual void copy_out(std::size_t turn, const Slots& slots) = 0;
};

class TurnPlayer {
 public:
  TurnPlayer(std::vector<GroupBlock*> blocks, int index, GroupLayout layout);

  enum class Stage { none, copy_in, reduce, copy_out };

  void start(Movement& movement);

  // Takes one step if one can be taken, and says which. The caller then wakes the other members.
  Stage step();
  bool done() const;

  // For which member, and for what, the first step waits that this member has not taken; -1: for nobody, it can be
  // taken. Others may wait too, but for members that are no further: what is awaited always comes first.
  struct Awaited {
    int member;
    Event event;
  };
  Awaited awaits() const;

 private:
  using Word = std::atomic<std::uint64_t> GroupBlock::*;

  std::size_t limit() const;
  int lacking(Word word, std::uint64_t count) const;
  bool may_copy_in() const { return filled_ < limit() && filled_ < reduced_ + 2 && filled_ < left_ + 3; }
  std::uint64_t room_needed() const { return first_ + filled_ >= 2 ? first_ + filled_ - 2 : 0; }
  const Slots& slots(std::size_t turn);
  void raise(Word word, std::size_t turns);

  const std::vector<GroupBlock*> blocks_;
  const std::size_t index_;
  const GroupLayout layout_;
  Slots slots_;
  Movement* movement_ = nullptr;
  std::uint64_t first_ = 0;                          // turn of the group that is turn 0 of the movement
  std::size_t filled_ = 0, reduced_ = 0, left_ = 0;  // turns of the movement that are through with A, B, C here
};

}  // namespace ringred
