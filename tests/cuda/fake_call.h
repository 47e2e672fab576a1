// What the functions of the fake driver share: the calling thread's process, one call of it, and what work on a stream
// needs of memory.
#pragma once

#include "tests/cuda/fake_machine.h"
#include "tests/cuda/fake_streams.h"

namespace ringred::check {

// Of the calling thread.
struct FakeThread {
  FakeProcess* process = nullptr;
  std::vector<CUctx_st*> contexts;  // the current one comes last
  CaptureMode mode = CaptureMode::global;
};
FakeThread& this_thread();
FakeProcess& here();

// One call: under the machine's lock, counted, and failing where the test wants it to. Functions that give something
// back do so even where they report an error, as after a kernel that failed.
class Call {
 public:
  explicit Call(const char* symbol);
  bool fails() const { return result_ != Result::success; }
  Result result() const { return result_; }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  Result result_ = Result::success;
};

FakeDevice& device_of(int ordinal);
CUctx_st* current_context();
int current_device();
bool reaches(int device, int peer);

// Calls that a capture forbids to everyone, or to its own thread; they spoil it.
bool forbidden_by_capture();

CUstream_st* stream_of(Stream stream);

// As the next thing on a stream, or as a node of its capture.
Result enqueue(Stream stream, std::function<void()> work);

// What work on a stream needs to know of memory when it runs.
struct Place {
  std::shared_ptr<Region> region;
  std::byte* data = nullptr;
};
Place place_of(DevicePointer address, std::size_t bytes);
Place registered_place(void* address, std::size_t bytes);
void still_there(FakeProcess& process, const Place& place);

// The parts of the table.
void add_device_functions(Functions& table);
void add_memory_functions(Functions& table);
void add_mapping_functions(Functions& table);
void add_stream_functions(Functions& table);

}  // namespace ringred::check
