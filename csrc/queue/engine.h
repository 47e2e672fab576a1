// The engine: a rank's part in all its groups, with what moves them on (driver.h), what is kept of them (records.h) and
// what watches over them (stall_watch.h).
//
// Lock order: the driver's role, then groups_mutex_, then a group's mutex, then the records'. A thread that holds one
// of these never waits for the GIL: WaitHooks are called without the role.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "csrc/base/settings.h"
#include "csrc/base/wait.h"
#include "csrc/memory/arena.h"
#include "csrc/queue/driver.h"
#include "csrc/queue/group.h"
#include "csrc/queue/records.h"
#include "csrc/queue/stall_watch.h"

namespace ringred {

class Engine : Driven {
 public:
  // What a rank makes before it knows its peers.
  struct Memory {
    std::shared_ptr<Arena::Block> rank, world;
    static Memory make(Arena& arena, int size);
    // Once the ranks know who shares a node: by rank, numbers of nodes; empty: all do.
    void make_world(Arena& arena, int rank, int size, const std::vector<int>& nodes, const Settings& settings);
    static std::size_t bytes(int size, const Settings& settings);  // of addresses, on one node
  };

  struct Setup {
    int rank = 0, size = 1;
    std::shared_ptr<Arena> arena;
    Memory memory;
    std::vector<std::byte*> bases;           // where each rank's segment is mapped here; null on other nodes
    std::vector<std::size_t> lengths;        // and how long it is
    std::vector<std::size_t> rank_offsets;   // where in it the RankBlock lies
    std::vector<std::size_t> world_offsets;  // and the world's GroupBlock
    std::vector<int> lifelines;              // see Waiter::Peers
    MappedSegments segments;                 // what keeps the peers' mapped
    std::vector<int> nodes;                  // of each rank; empty: all are on one
    std::shared_ptr<Network> network;        // between them
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

  // The addresses of this rank's segment, [first, second).
  std::pair<std::uintptr_t, std::uintptr_t> arena() const;
  const std::shared_ptr<Arena>& arena_memory() const { return setup_.arena; }

  // Where an array lies in this rank's segment: in the arena, of which all ranks have a view. Throws a usage error for
  // other memory. And where that is for this process.
  std::size_t offset_of(const std::byte* data, std::size_t bytes) const;
  std::byte* address(int rank, std::size_t offset) const {
    return setup_.bases[static_cast<std::size_t>(rank)] + offset;
  }
  // How long a rank's segment is.
  std::size_t length(int rank) const { return setup_.lengths[static_cast<std::size_t>(rank)]; }

  // Until the operation is done; throws its error. Throws `interrupted` if the hooks say so: it stays in flight.
  void wait(Operation& operation, WaitHooks& hooks);

  // A group other than the world: memory first, whose offset the members tell each other, then the group. A group is
  // removed on all its ranks before one of them connects another: until then its memory stays, since members that have
  // not removed it read it.
  // `serial` tells its messages from those of others: the same on all members, and another one for each group.
  std::size_t prepare_group(const std::vector<int>& ranks);
  void connect_group(std::uint32_t number, std::vector<int> ranks, const std::vector<std::size_t>& offsets, int serial);
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
  Timeline& timeline() { return records_.timeline(); }
  std::string flight_recorder() const;

  // Ends this rank's part: what is in flight fails by name, peers that need this rank are told.
  void leave(const std::string& reason);

  // For a forked child, where the engine's thread does not exist and locks may be held for ever.
  void abandon();
  bool is_abandoned() const { return abandoned_.load(std::memory_order_acquire); }

 private:
  bool advance(bool by_caller) override;
  bool polls() const override;
  bool rests() const override;
  bool busy() const override;
  bool moving() const override;
  void look(std::int64_t now, bool by_caller) override;
  void about_to_sleep(const Operation& operation) override;

  template <class Step>
  bool guarded(Group& group, Step&& step);
  bool end_after(Group& group, const std::exception& error);
  template <class Report>
  static void report_if_possible(Report&& report);
  bool may_drive(const Group& group, bool by_caller) const;
  void poll_network(bool by_caller);
  void leave_network();
  void answer_requests();
  void check_usable() const;
  void check_direct(const Request& request) const;
  std::shared_ptr<Group> find(std::uint32_t number) const;
  const std::vector<std::shared_ptr<Group>>& driven();
  void add(std::uint32_t number, std::shared_ptr<Group> group);
  std::shared_ptr<Group> make_group(std::uint32_t number, std::vector<int> ranks, std::shared_ptr<Arena::Block> memory,
                                    const std::vector<std::size_t>& offsets, int serial);

  const Setup setup_;
  const InstructionSet& instruction_set_;
  const std::vector<RankBlock*> ranks_;
  RankBlock& mine_;
  Records records_;
  std::uint32_t reports_ = 0;                // the driver's: how many that peers wished for have begun
  std::unique_ptr<StallWatch> stall_watch_;  // the driver's

  mutable std::mutex groups_mutex_;
  std::array<std::shared_ptr<Group>, RankBlock::most_groups> groups_;
  std::map<std::size_t, std::shared_ptr<Arena::Block>> prepared_;  // by offset
  std::vector<std::shared_ptr<Group>> removed_;                    // whose memory members may still read
  std::atomic<std::uint64_t> groups_version_{0};
  std::vector<std::shared_ptr<Group>> driven_;  // the driver's copy
  std::uint64_t driven_version_ = ~std::uint64_t{0};

  std::atomic<bool> abandoned_{false};
  Driver driver_;
};

}  // namespace ringred
