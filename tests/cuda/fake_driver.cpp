// The functions of a CUDA driver over a FakeMachine. They do what cuda.h promises, and complain about what it forbids.
#include "tests/cuda/fake_call.h"

namespace ringred::check {

FakeThread& this_thread() {
  thread_local FakeThread thread;
  return thread;
}

FakeProcess& here() {
  return *this_thread().process;
}

Call::Call(const char* symbol) : lock_(here().machine.mutex) {
  const int number = here().call_count++;
  ++here().call_counts[symbol];
  if (number == here().failing_call) result_ = Result::unknown;
  if (const auto found = here().failing.find(symbol); found != here().failing.end()) result_ = found->second;
}

FakeDevice& device_of(int ordinal) {
  return here().machine.devices[static_cast<std::size_t>(here().visible[static_cast<std::size_t>(ordinal)])];
}

CUctx_st* current_context() {
  return this_thread().contexts.empty() ? nullptr : this_thread().contexts.back();
}

int current_device() {
  return here().visible[static_cast<std::size_t>(current_context()->ordinal)];
}

bool reaches(int device, int peer) {
  return device == peer || here().machine.peers.contains({device, peer});
}

bool forbidden_by_capture() {
  const auto& capture = here().capture;
  if (capture == nullptr || this_thread().mode == CaptureMode::relaxed) return false;
  if (!capture->global && capture->thread != std::this_thread::get_id()) return false;
  capture->invalidated = true;
  return true;
}

CUstream_st* stream_of(Stream stream) {
  if (stream == nullptr || stream == legacy_stream()) return here().legacy.get();
  if (stream != per_thread_stream()) return stream;
  auto& own = here().per_thread[std::this_thread::get_id()];
  if (own == nullptr) own = std::make_unique<CUstream_st>(here());
  return own.get();
}

Result enqueue(Stream stream, std::function<void()> work) {
  CUstream_st* queue = stream_of(stream);
  if (queue == here().legacy.get() && here().capture != nullptr) return Result::capture_implicit;
  if (queue->capture == nullptr) {
    queue->push(std::move(work));
    return Result::success;
  }
  queue->seen.insert(queue->capture->nodes.size());
  queue->capture->nodes.push_back(std::move(work));
  return Result::success;
}

Place place_of(DevicePointer address, std::size_t bytes) {
  Place place;
  place.region = here().region_at(address);
  place.data = here().host(address, bytes);
  return place;
}

void still_there(FakeProcess& process, const Place& place) {
  if (!place.region->live) process.machine.note_mistake("memory went while work on a stream used it");
  if (place.region->storage->freed) process.machine.note_mistake("memory is used after its owner freed it");
}

Place registered_place(void* address, std::size_t bytes) {
  for (const auto& [start, region] : here().registered) {
    auto* const first = static_cast<std::byte*>(start);
    auto* const wanted = static_cast<std::byte*>(address);
    if (wanted >= first && wanted + bytes <= first + region->bytes) return {region, wanted};
  }
  here().machine.note_mistake("an asynchronous copy uses host memory that is not registered");
  return {};
}

InProcess::InProcess(FakeProcess& process) : before_(this_thread().process) {
  this_thread().process = &process;
}

InProcess::~InProcess() {
  this_thread().process = before_;
}

void FakeProcess::enqueue(Stream stream, std::function<void()> work) {
  const InProcess inside(*this);
  const std::lock_guard lock(machine.mutex);
  check::enqueue(stream, std::move(work));
}

void FakeProcess::begin_capture(Stream stream, CaptureMode mode) {
  const InProcess inside(*this);
  const std::lock_guard lock(machine.mutex);
  capture = std::make_shared<Capture>();
  capture->id = machine.next_id++;
  capture->global = mode == CaptureMode::global;
  capture->thread = std::this_thread::get_id();
  capture->streams = {stream_of(stream)};
  stream_of(stream)->capture = capture;
}

Result FakeProcess::end_capture(Stream stream, std::vector<std::function<void()>>* nodes) {
  const InProcess inside(*this);
  const std::lock_guard lock(machine.mutex);
  const bool joined = stream_of(stream)->seen.size() == capture->nodes.size();
  const bool invalidated = capture->invalidated;
  for (CUstream_st* one : capture->streams) {
    one->capture = nullptr;
    one->seen.clear();
  }
  *nodes = capture->nodes;
  capture = nullptr;
  return invalidated ? Result::capture_invalidated : joined ? Result::success : Result::capture_unjoined;
}

Functions fake_functions() {
  Functions table{};
  add_device_functions(table);
  add_memory_functions(table);
  add_mapping_functions(table);
  add_stream_functions(table);
  return table;
}

}  // namespace ringred::check
