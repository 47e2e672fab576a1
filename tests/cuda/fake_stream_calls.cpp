// The fake driver: copies, streams, events, captures.
#include <atomic>
#include <cstring>

#include "tests/cuda/fake_call.h"

namespace ringred::check {
namespace {

// As hardware copies: copies that meet are no race of this program.
void copy_torn(std::byte* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    const std::byte value = std::atomic_ref(const_cast<std::byte&>(from[i])).load(std::memory_order_relaxed);
    std::atomic_ref(to[i]).store(value, std::memory_order_relaxed);
  }
}

Result copy(std::byte* to, const std::byte* from, std::size_t bytes, const Place& one, const Place& other,
            Stream stream) {
  if (one.data == nullptr || other.data == nullptr) return Result::invalid_value;
  FakeProcess& process = here();
  return enqueue(stream, [=, &process] {
    still_there(process, one);
    still_there(process, other);
    if (process.machine.torn)
      copy_torn(to, from, bytes);
    else
      std::memcpy(to, from, bytes);
  });
}

Result copy_to_host(void* to, DevicePointer from, std::size_t bytes, Stream stream) {
  const Call call("cuMemcpyDtoHAsync_v2");
  if (call.fails()) return call.result();
  here().bytes_to_host += bytes;
  const Place source = place_of(from, bytes), target = registered_place(to, bytes);
  return copy(static_cast<std::byte*>(to), source.data, bytes, source, target, stream);
}

Result copy_to_device(DevicePointer to, const void* from, std::size_t bytes, Stream stream) {
  const Call call("cuMemcpyHtoDAsync_v2");
  if (call.fails()) return call.result();
  here().bytes_to_device += bytes;
  const Place source = registered_place(const_cast<void*>(from), bytes), target = place_of(to, bytes);
  return copy(target.data, static_cast<const std::byte*>(from), bytes, source, target, stream);
}

Result stream_create(Stream* stream, unsigned, int) {
  const Call call("cuStreamCreateWithPriority");
  if (call.fails()) return call.result();
  *stream = new CUstream_st(here());
  here().streams.insert(*stream);
  return Result::success;
}

// Returns at once; the work that is left runs on, as the driver promises.
Result stream_destroy(Stream stream) {
  const Call call("cuStreamDestroy_v2");
  if (here().streams.erase(stream) == 0) {
    here().machine.note_mistake("a stream was destroyed that does not exist");
    return Result::invalid_handle;
  }
  here().retired.emplace_back(stream);
  return call.result();
}

Result stream_query(Stream stream) {
  const Call call("cuStreamQuery");
  if (call.fails()) return call.result();
  if (forbidden_by_capture() || stream_of(stream)->capture != nullptr) return Result::capture_unsupported;
  return stream_of(stream)->is_idle() ? Result::success : Result::not_ready;
}

Result join_capture(CUstream_st& stream, const CUevent_st& event) {
  if (stream.capture != nullptr && stream.capture != event.capture) return Result::capture_isolation;
  stream.capture = event.capture;
  stream.capture->streams.insert(&stream);
  stream.seen.insert(event.seen.begin(), event.seen.end());
  return Result::success;
}

Result stream_wait_event(Stream stream, Event event, unsigned) {
  const Call call("cuStreamWaitEvent");
  if (call.fails()) return call.result();
  CUstream_st& queue = *stream_of(stream);
  if (event->capture != nullptr) return join_capture(queue, *event);
  if (queue.capture != nullptr) return Result::capture_isolation;
  if (event->done == nullptr) return Result::success;
  const FakeProcess& process = here();
  queue.push([done = event->done, &process] {
    while (!done->load(std::memory_order_acquire) && !process.killed) std::this_thread::yield();
  });
  return Result::success;
}

Result stream_get_capture_info(Stream stream, CaptureStatus* status, std::uint64_t* id, CUgraph_st**,
                               CUgraphNode_st* const**, std::size_t*) {
  const Call call("cuStreamGetCaptureInfo_v2");
  if (call.fails()) return call.result();
  const CUstream_st& queue = *stream_of(stream);
  if (&queue == here().legacy.get() && here().capture != nullptr) return Result::capture_implicit;
  *status = queue.capture == nullptr     ? CaptureStatus::none
            : queue.capture->invalidated ? CaptureStatus::invalidated
                                         : CaptureStatus::active;
  if (queue.capture != nullptr) *id = queue.capture->id;
  return Result::success;
}

Result exchange_capture_mode(CaptureMode* mode) {
  const Call call("cuThreadExchangeStreamCaptureMode");
  std::swap(*mode, this_thread().mode);
  return call.result();
}

Result stream_write_value(Stream stream, DevicePointer address, std::uint32_t value, unsigned) {
  const Call call("cuStreamWriteValue32_v2");
  if (call.fails()) return call.result();
  if (!device_of(current_context()->ordinal).memory_operations) return Result::not_supported;
  const Place place = place_of(address, sizeof value);
  if (place.data == nullptr) return Result::invalid_value;
  FakeProcess& process = here();
  return enqueue(stream, [place, value, &process] {
    still_there(process, place);
    std::atomic_ref<std::uint32_t>(*reinterpret_cast<std::uint32_t*>(place.data)).store(value);
  });
}

Result stream_wait_value(Stream stream, DevicePointer address, std::uint32_t value, unsigned flags) {
  const Call call("cuStreamWaitValue32_v2");
  if (call.fails()) return call.result();
  if (!device_of(current_context()->ordinal).memory_operations || flags != wait_value_geq) return Result::not_supported;
  const Place place = place_of(address, sizeof value);
  if (place.data == nullptr) return Result::invalid_value;
  FakeProcess& process = here();
  return enqueue(stream, [place, value, &process] {
    const std::atomic_ref<std::uint32_t> word(*reinterpret_cast<std::uint32_t*>(place.data));
    while (static_cast<std::int32_t>(word.load() - value) < 0 && !process.killed) {
      still_there(process, place);
      std::this_thread::sleep_for(std::chrono::microseconds(5));
    }
  });
}

Result launch_host_function(Stream stream, HostFunction function, void* data) {
  const Call call("cuLaunchHostFunc");
  if (call.fails()) return call.result();
  return enqueue(stream, [function, data] { function(data); });
}

Result event_create(Event* event, unsigned) {
  const Call call("cuEventCreate");
  if (call.fails()) return call.result();
  *event = new CUevent_st();
  here().events.insert(*event);
  return Result::success;
}

Result event_destroy(Event event) {
  const Call call("cuEventDestroy_v2");
  if (here().events.erase(event) == 0) {
    here().machine.note_mistake("an event was destroyed that does not exist");
    return Result::invalid_handle;
  }
  delete event;
  return call.result();
}

Result event_record(Event event, Stream stream) {
  const Call call("cuEventRecord");
  if (call.fails()) return call.result();
  CUstream_st& queue = *stream_of(stream);
  if (&queue == here().legacy.get() && here().capture != nullptr) return Result::capture_implicit;
  event->capture = queue.capture;
  event->seen = queue.seen;
  event->done = nullptr;
  if (queue.capture != nullptr) return Result::success;
  event->done = std::make_shared<std::atomic<bool>>(false);
  queue.push([done = event->done] { done->store(true, std::memory_order_release); });
  return Result::success;
}

Result event_query(Event event) {
  const Call call("cuEventQuery");
  if (call.fails()) return call.result();
  if (event->capture != nullptr) return Result::captured_event;
  if (forbidden_by_capture()) return Result::capture_unsupported;
  return event->done == nullptr || event->done->load(std::memory_order_acquire) ? Result::success : Result::not_ready;
}

}  // namespace

void add_stream_functions(Functions& table) {
  table.copy_to_host = copy_to_host;
  table.copy_to_device = copy_to_device;
  table.stream_create = stream_create;
  table.stream_destroy = stream_destroy;
  table.stream_query = stream_query;
  table.stream_wait_event = stream_wait_event;
  table.stream_get_capture_info = stream_get_capture_info;
  table.exchange_capture_mode = exchange_capture_mode;
  table.stream_write_value = stream_write_value;
  table.stream_wait_value = stream_wait_value;
  table.launch_host_function = launch_host_function;
  table.event_create = event_create;
  table.event_destroy = event_destroy;
  table.event_record = event_record;
  table.event_query = event_query;
}

}  // namespace ringred::check
