// Allreduce of device memory through host memory, where devices cannot reach each other's.
//
// Every rank has a block in memory that all ranks of the node share and have pinned: counters, and two slots. A slot
// has a place of `slice_bytes` for each rank's slice. An array goes chunk by chunk, a chunk being a slice for each
// rank; chunks are numbered across calls, and chunk c goes through slot c mod 2. Rank r reduces slice r of each chunk:
//
//   1. send    r copies the slices that others own from its array into their places in its slot;
//   2. read    r copies slice r from all others' slots into its device's memory,
//              reduces all n inputs in the order of the ranks, and stores the result into its array;
//   3. publish r copies the result into its own place in its slot;
//   4. take    r copies the slices that others own from their slots into its array.
//
// Each step ends with the chunk's number in a counter of r's: sent, read, published, taken. Steps 1 and 3 (device to
// host) run on one stream, 2 and 4 (host to device) on another, so both directions of the bus are busy:
//
//   out   send(1) send(2) publish(1) send(3) publish(2) send(4) ...
//   in    read(1) read(2) take(1)    read(3) take(2)    read(4) ...
//
// Who waits for whom, all ranks p:
//   read(c)    waits for p's sent to be c                   take(c)     waits for p's published to be c
//   send(c)    waits for p's read to be c-2                 publish(c)  waits for p's taken to be c-2
// The last two are why two slots suffice: what a step overwrites was read by everyone. Steps 1 and 3 write different
// places of a slot, whatever the array's size, so each needs the one wait only. Nothing waits in a circle: each wait is
// for a step that its rank enqueued before its own waiting step, in the order of the two lines above.
//
// Of an array of S bytes each rank moves S bytes to the host and 2(n-1)/n S bytes from it. Less is impossible where
// devices reduce: what others own has to leave, (n-1)/n S, and results, S/n; and a ring or a tree would send results
// and partial sums through each rank once more. Floor: 2(n-1)/n S over the bandwidth of one direction of the bus.
// Reducing takes a slice's n+1 accesses at the speed of device memory, a few per cent of that, and stays on the stream
// `in`.
//
// A call returns when all is enqueued; where the driver has no stream memory operations, when its last piece is
// (signals.h). Waits of a stream have no deadline of their own, so await() and check() have: whoever gives up says so
// in its block (`broken`) and lets all streams run out by counters far ahead. What they compute then is worthless, and
// every rank finds `broken` set: its results count only when await() has returned, and its next call throws.
//
// Used by one thread at a time. Not in captures: a replay would wait for numbers that have come long ago.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/cuda/device_memory.h"
#include "csrc/cuda/host_wait.h"
#include "csrc/cuda/signals.h"
#include "csrc/cuda/streams.h"

namespace ringred::cuda {

// What a rank's block begins with. Fresh memory is zero, which is the state before the first chunk.
struct StagingBlock {
  enum Step { send, read, publish, take, steps };
  struct alignas(64) Counter {
    std::atomic<std::uint32_t> chunk{0};  // the last that the step is done with; written by the owner's streams
  };
  Counter done[steps];
  Counter trial;                                     // see Signals
  alignas(64) std::atomic<std::uint32_t> broken{0};  // set once by the owner, after the reason
  char reason[1020] = {};
};

struct StagingLayout {
  std::size_t slice_bytes;  // a multiple of 64
  int size;                 // ranks

  static constexpr std::size_t slots_begin = 4096;
  std::size_t place(std::uint32_t chunk, int rank) const {
    return slots_begin + (chunk % 2 * static_cast<std::size_t>(size) + static_cast<std::size_t>(rank)) * slice_bytes;
  }
  std::size_t bytes() const { return place(1, size); }
};

// Enqueues on the stream: output = inputs[0] op inputs[1] op ..., `count` elements. The output may be one of the
// inputs.
using StagedReduction =
    FunctionRef<void(Stream stream, const DevicePointer* inputs, DevicePointer output, std::size_t count)>;

class Staging {
 public:
  struct Setup {
    Gpu gpu;
    int rank;
    StagingLayout layout;
    std::vector<std::byte*> blocks;  // each rank's, mapped here; they outlive this
    HostWait wait;
    std::function<void()> look_around;  // throws where a peer is gone; called during long waits
    std::uint32_t chunks_before = 0;    // what all counters begin with
  };

  explicit Staging(Setup setup);
  Staging(const Staging&) = delete;
  ~Staging();

  bool on_device() const { return signals_->on_device(); }  // the host does not wait for peers
  bool is_idle() const;                                     // nothing of it is under way

  // In order with the caller's stream. All ranks call with the same count and element size. Input and output are the
  // same, or do not overlap.
  void allreduce(const CallerStream& caller, DevicePointer input, DevicePointer output, std::size_t count,
                 std::size_t element_size, StagedReduction reduce);

  // Waits on the host until the last call is over. Throws timeout, interrupted or peer_lost; then nothing is left
  // running, and this is broken on all ranks.
  void await();

  // For whoever looks now and then: throws as await() does if the last call has been under way for too long.
  void check();

  // Tells all ranks why this one takes no further part, and lets its streams run out.
  void break_off(const std::string& reason);

 private:
  struct Call;
  struct Slice;

  void enqueue(Call& call);
  void send(const Call& call, std::uint32_t chunk);
  void read(const Call& call, std::uint32_t chunk);
  void publish(const Call& call, std::uint32_t chunk);
  void take(const Call& call, std::uint32_t chunk);
  Slice slice_of_rank(const Call& call, std::uint32_t chunk, int owner) const;

  StagingBlock& block(int rank) const { return *reinterpret_cast<StagingBlock*>(setup_.blocks[index(rank)]); }
  std::byte* place(std::uint32_t chunk, int holder, int owner) const {
    return setup_.blocks[index(holder)] + setup_.layout.place(chunk, owner);
  }
  HostWord word(int rank, StagingBlock::Step step) const;
  void await_all(Stream stream, StagingBlock::Step step, std::uint32_t chunk);
  void post(Stream stream, StagingBlock::Step step, std::uint32_t chunk);
  void to_host(std::byte* to, DevicePointer from, std::size_t bytes);
  void to_device(DevicePointer to, const std::byte* from, std::size_t bytes);

  bool is_done() const;
  void wait_on_host(FunctionRef<bool()> ready);
  std::string lacking() const;  // who waits for whom
  void throw_if_broken() const;
  bool run_out();
  template <class Work>
  void or_break_off(Work&& work);

  static std::size_t index(int rank) { return static_cast<std::size_t>(rank); }

  const Setup setup_;
  std::deque<RegisteredMemory> registered_;  // by rank
  std::unique_ptr<DeviceMemory> scratch_;    // a slice of each peer
  EventPool events_;
  std::optional<OwnStream> out_, in_;
  std::optional<Signals> signals_;
  std::optional<EventPool::Lease> sent_[2];             // after the sends of the last two chunks
  std::optional<EventPool::Lease> out_done_, in_done_;  // of the last call
  std::chrono::steady_clock::time_point began_{};       // of the last call
  std::uint32_t chunk_ = 0;                             // the last that was enqueued, or is being
  std::uint64_t calls_ = 0;
  std::vector<DevicePointer> inputs_;
};

}  // namespace ringred::cuda
