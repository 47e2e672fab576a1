// The engine: a rank's part in all its groups, and the thread that moves them on.
//
// Who drives. Everything but submitting is done by one thread at a time, the one that holds `role_`: the engine's own
// thread, or a caller in wait(), which would otherwise only sleep until that thread has done the same. Driving means to
// take steps in all groups until none can be taken, then to sleep on the rank's bell (shared.h), which peers ring.
//   1. The driver stores into the bell who sleeps (seq_cst): the engine's thread or a caller.
//   2. It tries all steps once more. Only if none can be taken does it sleep. (The ringing side: bell.h.)
//   3. A caller that is done hands over: it stores that the engine's thread sleeps (seq_cst), tries all steps once
//   more,
//      and wakes that thread if there is something to do. If it does not sleep yet it is about to, on the same value.
// The engine's thread gives up the role while it sleeps, and when a caller wants it; a caller keeps it until it is
// done, or until somebody needs it for something else than driving (RoleRequest).
//
// Idle costs nothing: with nothing in flight the engine's thread sleeps without a limit, and submit() wakes it. With
// something in flight it looks at peers' lives and at deadlines every 100 ms.
//
// Lock order: role_, then groups_mutex_ or a group's mutex, then told_mutex_. A thread that holds one of these never
// waits for the GIL but in WaitHooks::poll, under role_; so who holds the GIL never waits for role_.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "csrc/base/settings.h"
#include "csrc/base/wait.h"
#include "csrc/memory/arena.h"
#include "csrc/queue/flight_recorder.h"
#include "csrc/queue/group.h"
#include "csrc/queue/stall_watch.h"
#include "csrc/queue/timeline.h"

namespace ringred {

class Engine : Group::Observer {
 public:
  // What a rank makes before it knows its peers.
  struct Memory {
    std::shared_ptr<Arena::Block> rank, world;
    static Memory make(Arena& arena, int size, const Settings& settings);
    static std::size_t bytes(int size, const Settings& settings);  // of addresses
  };

  struct Setup {
    int rank = 0, size = 1;
    std::shared_ptr<Arena> arena;
    Memory memory;
    std::vector<std::byte*> bases;           // where each rank's segment is mapped here
    std::vector<std::size_t> lengths;        // and how long it is
    std::vector<std::size_t> rank_offsets;   // where in it the RankBlock lies
    std::vector<std::size_t> world_offsets;  // and the world's GroupBlock
    std::vector<int> lifelines;              // see Waiter::Peers
    MappedSegments segments;                 // what keeps the peers' mapped
    bool cores_suffice = true;
    Settings settings;
    std::function<void(const std::string&)> report;  // a text for the user
    std::function<std::string()> stacks;             // this process's Python stacks, without the GIL
  };
  explicit Engine(Setup setup);
  ~Engine() override;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  int rank() const { return setup_.rank; }
  int size() const { return setup_.size; }

  // `waits`: the caller waits for it at once, so the engine's thread need not be woken.
  std::shared_ptr<Operation> submit(std::uint32_t group, Request request, bool waits = false);

  // Until the operation is done; throws its error. Throws `interrupted` if the hooks say so: it stays in flight.
  void wait(Operation& operation, WaitHooks& hooks);

  // A group other than the world: memory first, whose offset the members tell each other, then the group. A group is
  // removed on all its ranks before one of them connects another: until then its memory stays, since members that have
  // not removed it read it.
  std::size_t prepare_group(std::size_t size);
  void connect_group(std::uint32_t number, std::vector<int> ranks, const std::vector<std::size_t>& offsets);
  void remove_group(std::uint32_t number);
  std::shared_ptr<const Group> group(std::uint32_t number) const;

  // Operations that somebody asked to be told of, when they are done. Empty after leave().
  void tell(const std::shared_ptr<Operation>& operation);
  std::vector<std::shared_ptr<Operation>> await_told();

  // How often each member of a group was the last to submit, and for how long the others had waited.
  struct Lateness {
    std::uint64_t times;
    double seconds;
  };
  std::vector<Lateness> lateness(std::uint32_t group) const;

  // A synchronous call waits for long, outside of the engine: rank 0 reports it with all that it knows. Any thread.
  void stalls_in(const std::string& call);
  void goes_on();

  void record_failure(const std::string& text);
  std::vector<std::pair<int, std::string>> failures() const;  // the first one first
  Timeline& timeline() { return timeline_; }
  std::string flight_recorder() const;

  // Ends this rank's part: what is in flight fails by name, peers that need this rank are told.
  void leave(const std::string& reason);

  // For a forked child, where the engine's thread does not exist and locks may be held for ever.
  void abandon();
  bool is_abandoned() const { return abandoned_.load(std::memory_order_acquire); }

 private:
  class Drive;
  class RoleRequest;

  void run();
  bool drive_until_still(std::int64_t& last_work);
  template <class Step>
  bool guarded(Group& group, Step&& step);
  bool advance();
  bool busy() const;
  bool moving() const;
  void look();
  void answer_requests();
  void hand_over();
  void check_usable() const;
  std::shared_ptr<Group> find(std::uint32_t number) const;
  const std::vector<std::shared_ptr<Group>>& driven();
  void add(std::uint32_t number, std::shared_ptr<Group> group);
  std::shared_ptr<Group> make_group(std::uint32_t number, std::vector<int> ranks, std::shared_ptr<Arena::Block> memory,
                                    const std::vector<std::size_t>& offsets);
  bool wants_stages() const override { return timeline_.on(); }
  void stage(std::uint32_t group, TurnPlayer::Stage stage, std::int64_t begin, std::int64_t end) override;
  void batch(std::uint32_t group, const std::vector<std::shared_ptr<Operation>>& operations, std::int64_t begin,
             std::int64_t end) override;
  void ended(std::uint32_t group, const Operation& operation, bool failed) override;
  void completed(const std::shared_ptr<Operation>& operation) override;

  const Setup setup_;
  const InstructionSet& instruction_set_;
  std::vector<RankBlock*> ranks_;
  RankBlock& mine_;
  Timeline timeline_;
  FlightRecorder recorder_;  // the driver's

  std::mutex role_;
  std::atomic<int> callers_{0};              // that try to take the role from the engine's thread at this moment
  std::atomic<int> requests_{0};             // for the role from those who do not drive; who drives gives way
  std::int64_t next_look_ = 0;               // the driver's
  std::uint32_t reports_ = 0;                // the driver's: how many that peers wished for have begun
  std::unique_ptr<StallWatch> stall_watch_;  // the driver's

  mutable std::mutex groups_mutex_;
  std::array<std::shared_ptr<Group>, RankBlock::most_groups> groups_;
  std::map<std::size_t, std::shared_ptr<Arena::Block>> prepared_;  // by offset
  std::vector<std::shared_ptr<Group>> removed_;                    // whose memory members may still read
  std::atomic<std::uint64_t> groups_version_{0};
  std::vector<std::shared_ptr<Group>> driven_;  // the driver's copy
  std::uint64_t driven_version_ = ~std::uint64_t{0};

  std::mutex told_mutex_;
  std::condition_variable told_change_;
  std::vector<std::shared_ptr<Operation>> told_;
  bool told_closed_ = false;

  std::atomic<bool> stopping_{false}, abandoned_{false};
  std::atomic<bool> sleeps_for_ever_{false};  // the engine's thread; stored before it looks whether it is idle
  std::thread thread_;
};

}  // namespace ringred
