#include "csrc/cuda/streams.h"

#include "csrc/base/error.h"
#include "csrc/cuda/capture.h"

namespace ringred::cuda {

std::optional<CallerStream> CallerStream::from_protocol(std::int64_t number) {
  if (number == -1) return std::nullopt;
  if (number < 1)
    fail_usage(
        "A stream must be -1 (no order is wanted), 1 (the legacy default stream), 2 (the thread's default stream) or a "
        "handle: it is " +
        std::to_string(number) + ".");
  return CallerStream(reinterpret_cast<Stream>(number));
}

Stream CallerStream::get() const {
  if (handle_ == per_thread_stream() && std::this_thread::get_id() != thread_)
    fail_usage(
        "A thread's default stream must be used on that thread: this is another one. Make the call under a stream of "
        "its own.");
  return handle_;
}

std::optional<std::uint64_t> capture_of(const Driver& driver, Stream stream) {
  CaptureStatus status = CaptureStatus::none;
  std::uint64_t id = 0;
  const Result result = driver->stream_get_capture_info(stream, &status, &id, nullptr, nullptr, nullptr);
  if (result == Result::capture_implicit)
    fail_usage(
        "The default stream cannot be used while another stream captures a CUDA graph. Make the call on the capturing "
        "stream, or after the capture.");
  driver.check(result, "ask whether a stream captures");
  if (status == CaptureStatus::invalidated)
    fail_usage(
        "A stream cannot be used after its capture of a CUDA graph has failed: look at the error before this one, and "
        "end the capture.");
  if (status == CaptureStatus::none) return std::nullopt;
  return id;
}

void require_no_capture(const Driver& driver, Stream stream, const char* what, const char* because) {
  if (capture_of(driver, stream))
    fail_usage(std::string(what) + " cannot be captured in a CUDA graph: " + because +
               ". Make the call outside of the capture.");
}

bool has_ended(const Driver& driver, Stream stream) {
  const RelaxedCapture relaxed(driver);
  CaptureStatus status = CaptureStatus::none;
  std::uint64_t id = 0;
  if (driver->stream_get_capture_info(stream, &status, &id, nullptr, nullptr, nullptr) == Result::success &&
      status != CaptureStatus::none)
    return true;
  const Result result = driver->stream_query(stream);
  return result == Result::success || is_context_lost(result);
}

EventPool::EventPool(const Gpu& gpu, std::size_t ready) : gpu_(gpu) {
  const CurrentContext current(gpu_);
  all_.reserve(2 * ready);
  free_.reserve(2 * ready);
  try {
    while (all_.size() < ready) make();
  } catch (...) {
    for (const Event event : all_) (*gpu_.driver)->event_destroy(event);
    throw;
  }
}

EventPool::~EventPool() {
  for (const Event event : all_) (*gpu_.driver)->event_destroy(event);
}

// Room for giving it back is made here, so that a lease never allocates.
void EventPool::make() {
  all_.reserve(all_.size() + 1);
  free_.reserve(all_.size() + 1);
  Event event = nullptr;
  gpu_.driver->check((*gpu_.driver)->event_create(&event, event_disable_timing), "make an event");
  all_.push_back(event);
  free_.push_back(event);
}

EventPool::Lease EventPool::record(Stream stream) {
  if (free_.empty()) {
    const CurrentContext current(gpu_);
    make();
  }
  Lease lease(this, free_.back());
  free_.pop_back();
  gpu_.driver->check((*gpu_.driver)->event_record(lease.get(), stream), "record an event on a stream");
  return lease;
}

void follow(const Driver& driver, Stream stream, const EventPool::Lease& event) {
  driver.check(driver->stream_wait_event(stream, event.get(), 0), "make a stream wait for an event");
}

OwnStream::OwnStream(const Gpu& gpu) : driver_(gpu.driver) {
  const CurrentContext current(gpu);
  driver_->check((*driver_)->stream_create(&stream_, stream_non_blocking, 0), "make a stream");
}

OwnStream::~OwnStream() {
  (*driver_)->stream_destroy(stream_);
}

StreamOrder::StreamOrder(const Gpu& gpu) : gpu_(gpu), events_(gpu, 2), own_(gpu) {}

void StreamOrder::around(const CallerStream& caller, FunctionRef<void(Stream own)> work) {
  const CurrentContext current(gpu_);
  const Stream theirs = caller.get();
  enter(theirs);
  try {
    work(own_.get());
  } catch (...) {
    try {
      leave(theirs);
    } catch (const Error&) {  // the first error tells more
    }
    throw;
  }
  leave(theirs);
}

void StreamOrder::enter(Stream caller) {
  const std::optional<std::uint64_t> theirs = capture_of(*gpu_.driver, caller);
  const std::optional<std::uint64_t> ours = capture_of(*gpu_.driver, own_.get());
  if (ours && ours != theirs)
    fail_usage(
        "One communicator cannot be used outside of a capture of a CUDA graph, or in another one, while it is part of "
        "the capture. End that first, or use another process set.");
  follow(*gpu_.driver, own_.get(), events_.record(caller));
}

void StreamOrder::leave(Stream caller) {
  follow(*gpu_.driver, caller, events_.record(own_.get()));
}

}  // namespace ringred::cuda
