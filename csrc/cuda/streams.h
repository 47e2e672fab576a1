// The order between the caller's stream and ringred's own.
//
//   1. enter: an event is recorded on the caller's stream, and ours waits for it: the caller's tensors are complete.
//   2. work is enqueued on our stream.
//   3. leave: an event is recorded on our stream, and the caller's waits for it: what follows there sees the results.
//
// Invariant: nobody waits on the host, and no other stream is held up: work that overlaps, as a backward pass does,
// goes on. Waiting for an event takes it as it was recorded last, so an event may be recorded again at once: two
// suffice.
//
// In a capture of a CUDA graph, 1 makes our stream part of the capture and 3 joins it again; `around` does 3 even when
// the work throws, since an unjoined stream spoils the caller's graph. What the host decides while work is enqueued is
// decided once, for all replays; and nothing in a capture may be waited for on the host.
#pragma once

#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

#include "csrc/base/function_ref.h"
#include "csrc/cuda/device.h"

namespace ringred::cuda {

// A stream of the caller's: a handle of the driver or the CUDA runtime. 0 and 1 are the legacy default stream, which
// waits for all streams that were not made non-blocking; ours was. 2 is the calling thread's own default stream, so it
// has to be used on that thread.
class CallerStream {
 public:
  explicit CallerStream(Stream handle) : handle_(handle), thread_(std::this_thread::get_id()) {}

  // As __cuda_array_interface__ and DLPack number streams; nothing where the caller wants no ordering (-1). Throws a
  // usage error for numbers that they exclude.
  static std::optional<CallerStream> from_protocol(std::int64_t number);

  // Throws a usage error where the handle means another stream on this thread.
  Stream get() const;

 private:
  Stream handle_;
  std::thread::id thread_;
};

// The capture that a stream belongs to. Throws a usage error where it cannot be used at all: its capture has failed, or
// it is the legacy stream and another captures.
std::optional<std::uint64_t> capture_of(const Driver& driver, Stream stream);

// Throws a usage error where the stream is capturing: `what` cannot be part of a graph, `because`.
void require_no_capture(const Driver& driver, Stream stream, const char* what, const char* because);

// Whether nothing is under way on the stream. What a lost context leaves behind runs no more, and a stream that
// captures has nothing to run. May be asked while some thread captures a graph.
bool has_ended(const Driver& driver, Stream stream);

// Events without timing. One that is given back is used again: after the first calls nothing is made. Used by one
// thread at a time.
class EventPool {
 public:
  EventPool(const Gpu& gpu, std::size_t ready);
  EventPool(const EventPool&) = delete;
  ~EventPool();

  class Lease {
   public:
    Lease(Lease&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), event_(other.event_) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease() {
      if (pool_ != nullptr) pool_->free_.push_back(event_);
    }
    Event get() const { return event_; }

   private:
    friend EventPool;
    Lease(EventPool* pool, Event event) : pool_(pool), event_(event) {}
    EventPool* pool_;
    Event event_;
  };

  // An event that comes after what is on the stream now.
  Lease record(Stream stream);

  std::size_t made() const { return all_.size(); }

 private:
  void make();

  const Gpu gpu_;
  std::vector<Event> all_, free_;
};

// A stream of ringred's own.
class OwnStream {
 public:
  explicit OwnStream(const Gpu& gpu);
  OwnStream(const OwnStream&) = delete;
  ~OwnStream();

  Stream get() const { return stream_; }

 private:
  const DriverPointer driver_;
  Stream stream_ = nullptr;
};

// 1 to 3, for work that is enqueued within one call.
class StreamOrder {
 public:
  explicit StreamOrder(const Gpu& gpu);

  Stream stream() const { return own_.get(); }
  void around(const CallerStream& caller, FunctionRef<void(Stream own)> work);

 private:
  void enter(Stream caller);
  void leave(Stream caller);

  const Gpu gpu_;
  EventPool events_;
  OwnStream own_;
};

// The two halves of 1 and 3, where they happen on different threads: event = pool.record(one stream), then
// follow(other stream, event).
void follow(const Driver& driver, Stream stream, const EventPool::Lease& event);

}  // namespace ringred::cuda
