// The device's communicator of a rank: allreduces of device memory with the other ranks of a node, in order with the
// caller's stream.
//
// Which way vectors take is decided once, by all ranks alike (peers.h):
//   direct   every rank's device loads and stores every other's memory: leaves and schedules (direct.h);
//   staged   through pinned host memory (staging.h), where some rank does not reach another, where ranks of several
//            processes share a device, whose kernels take turns and must not wait for one another, and beyond
//            most_ranks.
// sentence() says which, and why.
//
// A call
//   1. is checked: what cannot be done is refused before anything has started, with the rule, the value and the remedy;
//   2. is announced: what all ranks must agree on goes into this rank's host block, and is compared with what peers
//   have
//      announced so far (announcements.h); what comes later is compared at the next call, in await() and in check();
//   3. is enqueued on streams of the communicator's own, which follow the caller's and are followed by it. The host
//   waits
//      for nothing, but where staging has to (signals.h).
//
// A call may be captured in a CUDA graph where is_direct(). It is announced and compared when it is captured; replays
// are not: their kernels number themselves in device memory, and a replay that a peer does not make ends by its
// patience. Replays and calls of one communicator must be ordered by their streams: they use the same memory. Graphs
// must not be replayed after end().
//
// How it breaks. A rank that finds ranks in disagreement, waits for too long, is interrupted, misses a peer or fails on
// the way through a call writes the reason, then `broken` into its host block, and raises the report word of all ranks
// (report.h), which the waits of kernels look at: they end on all devices. Every other rank finds it at its next call,
// in await() or in check(), and throws, too. What such a call has left in its output is undefined: a result counts when
// await() has returned, or when the stream has come past the call and check() has returned.
//
// How it ends (end(), or the destructor, which does not throw). On every rank:
//   1. its own work is over, waited for with the deadline;
//   2. it closes its mappings of peers' memory, and says `left` in its host block;
//   3. it waits until all ranks have left;
//   4. it frees its memory.
// Where a rank is broken, or does not come, nothing is freed that a peer may have mapped: it goes with the process.
//
// Invariant: nothing waits for longer than the timeout of HostWait, on the host or on the device, and some seconds more
// in which what was broken off runs out. Used by one thread at a time. All ranks make the same calls in the same order;
// constructors, allocate() and prepare() are such calls, too, and meet on the host.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/base/types.h"
#include "csrc/cuda/announcements.h"
#include "csrc/cuda/direct.h"
#include "csrc/cuda/host_wait.h"
#include "csrc/cuda/kernels.h"
#include "csrc/cuda/meeting.h"
#include "csrc/cuda/peers.h"
#include "csrc/cuda/reduction.h"
#include "csrc/cuda/sizes.h"
#include "csrc/cuda/staging.h"
#include "csrc/cuda/streams.h"
#include "csrc/cuda/symmetric_memory.h"

namespace ringred::cuda {

class DeviceCommunicator {
 public:
  enum class Way { direct, staged };

  struct Setup {
    Gpu gpu;
    int rank = 0;
    int size = 1;
    Meeting meeting;
    // By rank, mapped here: host_bytes(size, sizes) bytes of memory that all ranks share, zeroed, at whole pages. They
    // outlive the communicators of all ranks.
    std::vector<std::byte*> host_blocks;
    HostWait wait;
    std::function<void()> look_around;  // throws where a peer is gone; called during long waits; may be empty
    std::shared_ptr<Kernels> kernels;
    Sizes sizes;
    ProcessIdentity self = ProcessIdentity::of_this_process();
  };

  static std::size_t host_bytes(int size, const Sizes& sizes);

  // Collective. Throws on all ranks if it throws on one.
  explicit DeviceCommunicator(Setup setup);
  DeviceCommunicator(const DeviceCommunicator&) = delete;
  ~DeviceCommunicator();

  int rank() const { return setup_.rank; }
  int size() const { return setup_.size; }
  const Gpu& gpu() const { return setup_.gpu; }
  Way way() const { return way_; }
  bool is_direct() const { return way_ == Way::direct; }
  bool waits_on_host() const { return staging_ && !staging_->on_device(); }  // in calls, for peers; may differ by rank
  const std::string& sentence() const { return sentence_; }                  // for the user: the way, and why

  // Input and output are device memory of this rank's device, at multiples of an element's size; the same, or without
  // overlap. Throws usage, mismatch, peer_lost, system; timeout and interrupted only where the host has to wait.
  void allreduce(const CallerStream& caller, DevicePointer input, DevicePointer output, const Reduction& reduction);

  // Collective. Memory that all ranks have at the same offset, for gradients: on the direct way an allreduce in it
  // needs no copy. Lives until the communicator's end; not zeroed.
  const SymmetricMemory& allocate(std::size_t bytes);
  void allreduce_symmetric(const CallerStream& caller, const SymmetricMemory& memory, std::size_t offset,
                           const Reduction& reduction);

  // Collective. Makes an algorithm ready to be named in calls; on the direct way only. Nothing if it is.
  void prepare(Algorithm algorithm);

  // Waits on the host until the last call is over, but for captured ones, and throws where it has no result: timeout,
  // interrupted, peer_lost, mismatch, system. Then nothing of it is left running, and all ranks are broken.
  void await();

  // The same without waiting, for whoever looks now and then; also throws if the last call has been under way for
  // longer than the timeout.
  void check();

  // Collective; afterwards nothing may be called. Throws where the ranks do not come together.
  void end();

  // The end of a rank that waits for nobody: what is under way may run out for some seconds, then it breaks off for
  // `reason`, which peers that still call get to know. Memory that peers may have opened goes with the process; where
  // nothing had to break off, peers may free theirs.
  void abandon(const std::string& reason);

 private:
  struct Opening {};  // nothing is open yet
  DeviceCommunicator(Setup setup, Opening);

  // communicator_opening.cpp
  void open();
  void choose_way(const std::vector<PeerRow>& rows);
  void open_direct(int blocks);
  void open_staging();
  SymmetricMemory& add_memory(std::size_t bytes, bool zeroed);
  void clear(const SymmetricMemory& memory);
  long long patience() const;
  template <class Work>
  auto meet(Work&& work);

  // communicator.cpp
  void require_open() const;
  void check_call(const Reduction& reduction) const;
  void check_arrays(DevicePointer input, DevicePointer output, const Reduction& reduction) const;
  void announce(const Announcement& announcement);
  void start(const CallerStream& caller, Announcement announcement, FunctionRef<void(Stream own)> enqueue);
  void stage(const CallerStream& caller, DevicePointer input, DevicePointer output, const Reduction& reduction,
             const Announcement& announcement);

  // communicator_endings.cpp
  bool is_idle() const;
  bool is_reported() const;
  void look();
  void throw_if_broken() const;
  void throw_if_different();
  void throw_if_reported();
  std::string lacking() const;
  void break_off(ErrorKind kind, const std::string& reason);
  void or_break_off(FunctionRef<void()> work);
  void explained(FunctionRef<void()> staged);
  bool run_out();
  bool leave();
  void let_go();

  HostBlock& block(int rank) const { return *reinterpret_cast<HostBlock*>(setup_.host_blocks[index(rank)]); }
  static std::size_t index(int rank) { return static_cast<std::size_t>(rank); }

  const Setup setup_;
  Way way_ = Way::staged;
  std::string sentence_;
  bool met_ = false;  // peers may have opened memory of this rank
  bool ended_ = false;
  int seats_ = 1;  // ranks that share this rank's device
  Mappings mappings_;
  std::optional<Announcements> announcements_;
  Announcement last_;                           // call
  std::optional<RegisteredMemory> registered_;  // this rank's host block, for the report
  std::deque<SymmetricMemory> memories_;        // all that peers may have opened, and regions
  std::vector<std::size_t> regions_;            // of allocate(), in memories_
  std::optional<StreamOrder> order_;
  std::optional<EventPool> events_;
  std::optional<EventPool::Lease> done_;  // of the last call that was not captured, on the direct way
  std::chrono::steady_clock::time_point began_{};
  std::unique_ptr<Direct> direct_;
  std::unique_ptr<Staging> staging_;
};

}  // namespace ringred::cuda
