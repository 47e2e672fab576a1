// One rank's part in one group (process set): the operations that it has submitted, and the one that runs.
//
// Threads: submit() may be called by any; everything else only by who drives the engine (see driver.h). `mutex_` guards
// what both touch: the names, the operations in flight, and whether the group is closed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "csrc/base/settings.h"
#include "csrc/memory/arena.h"
#include "csrc/queue/announcements.h"
#include "csrc/queue/columns.h"
#include "csrc/queue/mirrors.h"
#include "csrc/queue/movements.h"
#include "csrc/queue/opening.h"
#include "csrc/queue/operation.h"
#include "csrc/queue/sequencer.h"
#include "csrc/queue/turns.h"
#include "csrc/select/choice.h"

namespace ringred {

class Group {
 public:
  // Operations without a name are numbered.
  static constexpr const char* unnamed_prefix = "unnamed.";

  // What happens to operations on the way, for those who keep records.
  struct Observer {
    virtual ~Observer() = default;
    virtual bool wants_stages() const = 0;
    virtual void stage(std::uint32_t group, Stage stage, std::int64_t begin, std::int64_t end) = 0;
    virtual void batch(std::uint32_t group, const std::vector<std::shared_ptr<Operation>>& operations,
                       std::int64_t begin, std::int64_t end) = 0;
    virtual void ended(std::uint32_t group, const Operation& operation, bool failed) = 0;  // before anyone hears of it
    virtual void completed(const std::shared_ptr<Operation>& operation) = 0;               // after
  };

  struct Setup {
    std::uint32_t number;
    std::vector<int> ranks;  // of the world, ascending
    int index;               // this rank's place among them
    std::shared_ptr<Arena::Block> memory;
    std::vector<GroupBlock*> blocks;  // of all members; of those on other nodes, their mirrors here
    std::vector<RankBlock*> members;  // theirs; null on other nodes
    std::vector<int> nodes;           // of each member
    Network* network = nullptr;       // to other nodes
    int tag = 0;                      // of this group's messages
    std::vector<std::byte*> bases;    // where each member's segment is mapped
    std::vector<int> lifelines;       // by member, see Waiter::Peers
    const Settings* settings;
    const InstructionSet* instruction_set;
    Observer* observer;
  };
  explicit Group(Setup setup);

  // Room in this rank's segment for its part of a group, and for the mirrors that it keeps, which follow at distances
  // of bytes(); and how many bytes of addresses one takes.
  static std::shared_ptr<Arena::Block> reserve(Arena& arena, const Nodes& nodes, int index, const Settings& settings);

  static std::size_t bytes(const Nodes& nodes, const Settings& settings);

  std::uint32_t number() const { return setup_.number; }
  int size() const { return static_cast<int>(setup_.ranks.size()); }
  int index() const { return setup_.index; }
  const std::vector<int>& ranks() const { return setup_.ranks; }
  Arena::Block& memory() const { return *setup_.memory; }
  const GroupBlock& sequencer_block() const { return *setup_.blocks.front(); }
  bool is_sequencer() const { return setup_.index == 0; }
  // Whether who drives has to look at what this rank submits before peers can.
  bool acts_on_submissions() const { return sequencer_ || announcer_ || (in_step() && mirrors_); }
  // All members submit the same operations in the same order, one at a time: see opening.h.
  bool in_step() const { return setup_.number == RankBlock::callers_group; }
  std::uint32_t names_used() const { return mine_.entries.load(std::memory_order_acquire); }

  // Any thread. Rings the reader of submissions, if that is another rank.
  std::shared_ptr<Operation> submit(Request request);

  // Whether peers know that this rank waits for something. After submit(): if not, who drives has to look at it.
  bool hears() const { return mine_.awaits.load(std::memory_order_seq_cst) != 0; }

  // Takes a step if one can be taken; returns whether.
  bool advance();

  // Whether something is in flight, so that lives and deadlines have to be looked at.
  bool busy() const { return !over_ && (in_flight_count_.load(std::memory_order_seq_cst) > 0 || sequencer_waits()); }
  bool moving() const { return playing_; }
  bool is_sending() const { return mirrors_ && mirrors_->is_sending(); }
  bool spans_nodes() const { return mirrors_ != nullptr; }
  // Whether the network has something to do for this group: nobody rings for that, who drives has to look.
  bool polls() const {
    return mirrors_ && (mirrors_->is_sending() ||
                        (!over_ && in_flight_count_.load(std::memory_order_seq_cst) > 0 && !waits_for_relay()));
  }
  // Whether what comes next comes from a neighbour that waits for other nodes: it takes long, and rings. What other
  // nodes tell this member itself is for nobody here, if on each a member of the same place speaks to it.
  bool waits_for_relay() const { return playing_ && nodes_.even() && player_->waits_for_relay(); }

  // To be called every 100 ms while busy: fails what can no longer complete.
  void look(std::int64_t now);

  // Fails all that is in flight, and what comes later, with this error. Tells the peers `reason`, if it is not empty.
  void close(const Error& error, const std::string& reason);

  // The sequencer's: fails a name that some members have submitted and others will not.
  void fail_name(const NameHash& name, const std::string& text);

  // When the first of the operations in flight was submitted; 0: there is none.
  std::int64_t oldest_in_flight() const;

  // A thread is about to sleep until this operation is over.
  void note_awaited(const Operation& operation);

  // Has the reader of submissions look at what it has not been woken for.
  void wake_reader();

 private:
  // The member of this node that reads what all of it submit: the sequencer or an announcer.
  int reader() const { return nodes_.members(nodes_.of(setup_.index)).front(); }
  bool sequencer_waits() const { return sequencer_ && sequencer_->waits(); }
  Entry& entry(std::uint32_t number) const;
  void check_announcement(const Request& request) const;
  void check_update(const Update& update) const;
  std::shared_ptr<Operation> introduce(Request request);
  void write_entry(Operation& operation, const NameHash& hash);
  void publish(const std::shared_ptr<Operation>& operation);
  const LogRecord* next_record() const;
  bool begin_next();
  bool open_next();
  void end_opening();
  void begin_batch(const LogRecord& record);
  Batch batch_of(CallKind kind, Op op);
  std::optional<Way> way_of_batch() const;
  bool play();
  void play_next();
  void end_join();
  void finish_record();
  void complete(const std::shared_ptr<Operation>& operation, const std::optional<Error>& error);
  std::shared_ptr<Operation> in_flight(std::uint32_t number);
  bool needs(std::size_t member) const;
  bool take_notes();
  void tell_waiting(std::int64_t now);
  void look_at_members();
  void look_at_deadline(std::int64_t now);
  std::string end_of(std::size_t member) const;
  bool has_come(std::size_t member, const Operation& operation) const;
  std::string missing(const Operation& operation) const;
  bool note_awaits();
  void wake_others(Event event);
  void wake(std::size_t member, Event event);

  const Setup setup_;
  const Nodes nodes_;
  const GroupLayout layout_;
  GroupBlock& mine_;
  std::unique_ptr<Sequencer> sequencer_;
  std::unique_ptr<Announcer> announcer_;
  std::optional<Packets> packets_;
  std::unique_ptr<Mirrors> mirrors_;  // null: all members are on one node
  std::optional<ColumnPlayers> columns_;
  std::optional<Choice> across_nodes_;  // how batches go

  mutable std::mutex mutex_;
  NameTable names_;
  std::vector<std::shared_ptr<Operation>> in_flight_;  // by number
  std::atomic<std::size_t> in_flight_count_{0};        // written under mutex_
  std::size_t committed_entries_ = 0;
  std::uint64_t unnamed_ = 0;
  std::optional<Failure> closed_;

  // The driver's.
  bool over_ = false;  // closed: no record of the log is taken any more
  std::uint32_t awaits_ = 0;
  std::optional<TurnPlayer> player_;  // always there, once the mirrors are
  bool playing_ = false;
  std::uint64_t calls_ = 0;  // in step: how many are over
  std::unique_ptr<Opening> opening_;
  std::vector<int> givers_;
  std::vector<Run> runs_;
  std::vector<std::shared_ptr<Operation>> mine_in_batch_;
  std::vector<Operation*> mine_as_pointers_;
  std::vector<std::unique_ptr<Movement>> movements_;
  std::size_t movement_ = 0;
};

}  // namespace ringred
