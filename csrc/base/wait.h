// The one wait loop: pause, yield, futex; with a deadline, an abort check, a check that the peer is alive, and a
// sentence that says who waits for whom and for what.
//
// The sleep protocol. A rank waits until some word that a peer writes has a wanted value.
//   1. The sleeper stores into its own doorbell whom it waits for (seq_cst).
//   2. The sleeper looks at the wanted word again (seq_cst); only if it is still wanting does it sleep on the doorbell.
//   3. The writer stores the word (seq_cst), then loads every peer's doorbell (seq_cst), and wakes whom it finds
//      waiting for it.
// In the one order of all seq_cst operations either (3)'s store comes before (2), and the sleeper sees the word, or (1)
// comes before (3)'s load, and the writer sees the doorbell. The kernel compares the doorbell once more under its own
// lock, so a wake between (2) and the sleep is not lost. There are no stand-alone fences: ThreadSanitizer cannot see
// them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/base/function_ref.h"

namespace ringred {

// Whom a sleeping rank waits for: 0 nobody (it is awake), peer + 1, or any_peer. Written by its owner (1) and by the
// one who wakes it; read by all.
struct alignas(64) Doorbell {
  static constexpr std::uint32_t any_peer = 0xffffffffu;
  std::atomic<std::uint32_t> awaited{0};
};

// Why a rank no longer takes part. Written once, by its owner: first the reason, then the state (release).
struct alignas(64) Departure {
  enum State : std::uint32_t { present = 0, left = 1, broken = 2 };
  std::atomic<std::uint32_t> state{present};
  char reason[1020] = {};
};

// What the host language wants to know about a long wait. Called on the waiting thread, never on the fast path.
class WaitHooks {
 public:
  virtual ~WaitHooks() = default;
  virtual void enter() {}                     // the wait will be long: a lock that others need may be given up
  virtual bool poll() { return true; }        // every 100 ms and after a signal; false interrupts the wait
  virtual void leave() {}                     // the wait is over; may end the thread by unwinding its stack
  virtual void report(const std::string&) {}  // a sentence for the user: a stall
};

struct WaitSettings {
  bool cores_suffice;  // ranks and their engines fit the cores: spinning takes nothing from a peer
  std::chrono::microseconds spin;
  double timeout_seconds;  // 0: none
  double stall_seconds;    // 0: no report
};

inline void relax_processor() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Waiter {
 public:
  // One of each per rank. A lifeline is a descriptor that becomes readable when the peer's process ends; -1 where there
  // is none (the rank itself, threads).
  struct Peers {
    std::vector<Doorbell*> doorbells;
    std::vector<Departure*> departures;
    std::vector<int> lifelines;
  };

  Waiter(int rank, Peers peers, WaitSettings settings, WaitHooks* hooks);

  // Returns when ready() is true; ready() looks at words that `peer` writes (or any peer: -1), and once true stays
  // true. Throws peer_lost, timeout or interrupted. `sentence()` completes "rank 0 waits for rank 2 ...".
  template <class Ready, class Sentence>
  void until(int peer, Ready&& ready, Sentence&& sentence) {
    for (int turn = 0; turn < pauses; ++turn) {
      if (ready()) return;
      relax_processor();
    }
    wait_long(peer, FunctionRef<bool()>(ready), FunctionRef<std::string()>(sentence));
  }

  // To be called after each seq_cst store that a peer may wait for (3).
  void wake_sleepers() {
    for (Doorbell* doorbell : others_) {
      const std::uint32_t awaited = doorbell->awaited.load(std::memory_order_seq_cst);
      if (awaited == mine_ || awaited == Doorbell::any_peer) wake(*doorbell, awaited);
    }
  }

  // To be called after a store that only `peer` may wait for.
  void wake_sleeper(int peer) {
    Doorbell& doorbell = *peers_.doorbells[static_cast<std::size_t>(peer)];
    const std::uint32_t awaited = doorbell.awaited.load(std::memory_order_seq_cst);
    if (awaited == mine_ || awaited == Doorbell::any_peer) wake(doorbell, awaited);
  }

  // Throws peer_lost if a peer broke off. For calls that touch a peer's own array: its owner may use it again after it
  // broke off, which it says before. To be called after a seq_cst store (a phase) that follows the reads.
  template <class Sentence>
  void throw_if_broken(Sentence&& sentence) {
    if (is_broken()) throw_broken(FunctionRef<std::string()>(sentence));
  }

  // How often this rank has waited for each peer for long (more than some microseconds), and for how long together.
  struct Waited {
    std::atomic<std::uint64_t> times{0}, nanoseconds{0};
  };
  const Waited& waited_for(int peer) const { return waited_[static_cast<std::size_t>(peer)]; }

  // Tells all peers why this rank takes no further part, and wakes them.
  void depart(Departure::State state, const std::string& reason);

 private:
  // 20 pauses of about 40 cycles: the time in which a peer that runs answers (a cache line's way there and back).
  static constexpr int pauses = 20;

  class LongWait;

  static void wake(Doorbell& doorbell, std::uint32_t awaited);
  bool is_broken() const {
    for (const Departure* departure : peers_.departures)
      if (departure->state.load(std::memory_order_seq_cst) == Departure::broken) return true;
    return false;
  }
  [[noreturn]] void throw_broken(FunctionRef<std::string()> sentence);
  void wait_long(int peer, FunctionRef<bool()> ready, FunctionRef<std::string()> sentence);

  const int rank_;
  const std::uint32_t mine_;  // what a peer that waits for this rank writes into its doorbell
  Peers peers_;
  std::vector<Doorbell*> others_;
  WaitSettings settings_;
  WaitHooks* hooks_;
  std::unique_ptr<Waited[]> waited_;  // by peer; written by this rank's thread
};

}  // namespace ringred
