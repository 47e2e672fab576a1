// One group of ranks and all that they share: memory, lines, phases, the wait loop. It owns everything that it uses;
// there is nothing global, so n communicators can be n ranks in one process.
//
// Invariant: every call that returns, or that throws a usage or mismatch error, leaves all ranks at the same call
// number and phase. Any other error breaks the communicator, on all ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/base/settings.h"
#include "csrc/base/wait.h"
#include "csrc/engine/call.h"
#include "csrc/engine/gate.h"
#include "csrc/engine/scheduled.h"
#include "csrc/leaf/reduction.h"
#include "csrc/leaf/team.h"
#include "csrc/memory/arena.h"
#include "csrc/memory/segment.h"
#include "csrc/select/calibrate.h"
#include "csrc/select/selection.h"

namespace ringred {

class Communicator {
 public:
  // A rank's own memory comes first: its segment is made and committed here, so that peers may map it afterwards.
  // `more` bytes of addresses are added to what the settings say, for what others put there.
  static std::shared_ptr<Arena> make_arena(int size, const Settings& settings, std::size_t more = 0);

  struct Setup {
    int rank = 0;
    int size = 1;
    std::shared_ptr<Arena> arena;   // of this rank
    std::vector<std::byte*> bases;  // where each rank's segment is mapped here
    MappedSegments segments;        // what keeps the peers' mapped
    std::vector<int> lifelines;     // for each rank: readable when its process ends; -1: none
    bool cores_suffice = true;
    Settings settings;
    std::optional<Costs> costs;  // from a file; else measured when they first matter
    std::unique_ptr<WaitHooks> hooks;
  };
  explicit Communicator(Setup setup);
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return team_.rank(); }
  int size() const { return team_.size(); }
  Arena& arena() { return *arena_; }

  void barrier(std::string_view tag = {});

  // `data` holds `bytes` on every rank; afterwards all hold the root's.
  void broadcast(const Call& call, std::byte* data, std::size_t bytes);

  // Binds an allreduce to its buffers, for any number of run()s. The call's shape and tag must outlive the binding.
  // Throws a usage error where the operator is not defined for the dtype.
  Reduction bind(const Call& call, const std::byte* input, std::byte* output, std::size_t count) const;
  void run(const Call& call, const Reduction& reduction);

  // How run() chooses. force() is made on all ranks between the same calls; it takes part in no fingerprint.
  const Selection& selection() const { return selection_; }
  void force(std::optional<Way> way) { selection_.force(way); }

  // Times these probes on all ranks, for about so long; the same figures everywhere. Collective.
  std::vector<Sample> time_probes(std::span<const Probe> probes, double seconds);

  // Says to the peers that this rank takes no further part: in good order, or breaking off if a thread is in a call.
  // Returns whether it was in good order.
  bool leave(const std::string& reason);

  // How long this rank has waited for a peer in all.
  const Waiter::Waited& waited_for(int peer) { return team_.waiter().waited_for(peer); }

  // For a forked child: calls raise, and the peers, who are the parent's, are told nothing.
  void abandon();

 private:
  class Entry;
  class LongCall;

  template <class Body>
  void guarded(const Call& call, Body&& body);
  void break_off(const std::string& reason);
  void perform(Way way, const Call& call, const Reduction& reduction);
  bool all_in_arenas() const;
  void calibrate();
  std::vector<Sample> take_samples(std::span<const Probe> probes, double seconds);
  double largest(double value);
  static void reduce_alone(const Reduction& reduction);
  void meet(const Call& call, Sentence sentence);
  [[noreturn]] void raise_mismatch(const Call& call);
  std::string mismatch_text() const;
  std::string sentence_of(const Call& call) const;

  std::shared_ptr<Arena> arena_;
  const Settings settings_;
  const InstructionSet& instruction_set_;
  Team team_;
  const MappedSegments segments_;
  const std::unique_ptr<WaitHooks> hooks_;
  Selection selection_;
  std::optional<Scheduled> scheduled_;  // from the first schedule on
  Gate gate_;
  std::string broken_;  // why the communicator is broken; empty: it is not
};

}  // namespace ringred
