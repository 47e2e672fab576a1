// A machine with GPUs and several processes, for tests: what the fake driver (fake_driver.cpp) works on.
//
// Device memory is heap memory between two red zones. Addresses are made up, and each process has its own: an address
// that one process uses as another's, or that is not mapped any more, is noticed. Mistakes that real hardware would
// answer with a crash, or not at all, are collected in `mistakes`.
#pragma once

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "csrc/cuda/functions.h"

namespace ringred::check {

using namespace ringred::cuda;

class FakeProcess;

struct FakeDevice {
  Uuid uuid{};
  int capability = 90;
  bool legacy_ipc = true, posix_descriptors = true, host_register = true, memory_operations = true;
  bool knows_ipc_attribute = true;
};

// Memory that exists: of a device, or of the host and registered.
class Storage {
 public:
  Storage(std::size_t size, int on_device);
  Storage(std::byte* host, std::size_t size) : data(host), bytes(size) {}
  bool is_whole() const;  // the red zones are untouched

  std::byte* data;
  const std::size_t bytes;
  const int device = -1;
  FakeProcess* owner = nullptr;
  std::uint64_t buffer_id = 0;
  bool legacy_capable = false, exportable = false, pooled = false, managed = false;
  std::atomic<bool> freed{false};
  std::atomic<int> opened{0};  // by other processes

 private:
  static constexpr std::size_t zone = 64, alignment = 256;  // as of cuMemAlloc
  static constexpr std::byte pattern{0xa5};
  std::vector<std::byte> room_;
};

// A range of a process's device addresses. Whoever uses it later asks whether it is still there.
struct Region {
  DevicePointer address = 0;
  std::size_t bytes = 0, offset = 0;
  std::shared_ptr<Storage> storage;  // none: reserved addresses
  bool accessible = true, imported = false;
  DevicePointer range_start = 0;
  std::size_t range_bytes = 0;
  std::atomic<bool> live{true};
};

struct FakeMachine {
  std::vector<FakeDevice> devices;
  std::set<std::pair<int, int>> peers;  // which device reaches which
  bool ipc_refused = false;             // as between containers

  explicit FakeMachine(int device_count);
  void note_mistake(const std::string& text);
  int mistake_count();
  std::string mistakes();

  std::recursive_mutex mutex;
  std::map<std::uint64_t, std::shared_ptr<Storage>> handles;      // of IPC and of physical memory, by buffer id
  std::map<std::uint64_t, std::shared_ptr<Storage>> descriptors;  // by inode
  std::uint64_t next_id = 1;
  std::atomic<unsigned> delay_seed{1};
  std::atomic<bool> slow{false};  // random delays in streams
  std::atomic<bool> torn{false};  // copies may meet, as after a break, when what they copy is worth nothing

 private:
  std::vector<std::string> mistakes_;
};

// A stream capture: its nodes in the order in which they were recorded.
struct Capture {
  std::uint64_t id = 0;
  bool global = false, invalidated = false;
  std::thread::id thread;
  std::vector<std::function<void()>> nodes;
  std::set<CUstream_st*> streams;
};

class FakeProcess {
 public:
  FakeProcess(FakeMachine& on, int number, std::vector<int> visible_devices);
  ~FakeProcess();

  // What the driver has no function for, or none that ringred uses.
  DevicePointer allocate_pooled(std::size_t bytes, int ordinal = 0);
  DevicePointer allocate_managed(std::size_t bytes, int ordinal = 0);
  DevicePointer map_physical(std::size_t pieces, std::size_t piece_bytes, bool exportable, int ordinal = 0);
  void unmap_physical(DevicePointer address);
  void begin_capture(Stream stream, CaptureMode mode);
  Result end_capture(Stream stream, std::vector<std::function<void()>>* nodes);
  void enqueue(Stream stream, std::function<void()> work);  // as a kernel
  void drain();                                             // waits until all streams are empty, or killed
  void kill();                                              // its streams run no more

  // Where device memory really is; a mistake and null where it is not accessible.
  std::byte* host(DevicePointer address, std::size_t bytes);

  // Failure injection: the call of this number (from 0, over all functions) fails, or all of one function do.
  void fail_call(int which) { failing_call = which; }
  void fail(const std::string& symbol, Result result) { failing[symbol] = result; }
  int calls() const { return call_count; }
  int calls_of(const std::string& symbol) { return call_counts[symbol]; }

  // Things that were made and not given back, in words; "" if there are none.
  std::string open_things();

  FakeMachine& machine;
  const int number;
  const std::vector<int> visible;
  std::atomic<int> call_count{0}, failing_call{-1};
  std::map<std::string, int> call_counts;
  std::map<std::string, Result> failing;
  std::map<DevicePointer, std::shared_ptr<Region>> regions;
  std::map<void*, std::shared_ptr<Region>> registered;
  std::map<DevicePointer, int> open_counts;          // of IPC
  std::map<AllocationHandle, int> held_allocations;  // handles of physical memory
  std::vector<std::unique_ptr<CUctx_st>> contexts;
  std::vector<int> context_references;
  std::set<CUevent_st*> events;
  std::set<CUstream_st*> streams;
  std::vector<std::unique_ptr<CUstream_st>> retired;
  std::map<std::thread::id, std::unique_ptr<CUstream_st>> per_thread;
  std::unique_ptr<CUstream_st> legacy;
  std::shared_ptr<Capture> capture;  // the one that is under way
  std::set<std::pair<int, int>> enabled_peers;
  std::atomic<bool> killed{false};
  std::atomic<std::size_t> bytes_to_host{0}, bytes_to_device{0};

  // The lowest free addresses, so that an address that was freed comes back.
  DevicePointer free_range(std::size_t bytes);
  std::shared_ptr<Region> add_region(DevicePointer address, std::shared_ptr<Storage> storage, std::size_t offset,
                                     std::size_t bytes);
  std::shared_ptr<Region> region_at(DevicePointer address);
};

// The calling thread belongs to a process for a scope.
class InProcess {
 public:
  explicit InProcess(FakeProcess& process);
  ~InProcess();

 private:
  FakeProcess* before_;
};

Functions fake_functions();

}  // namespace ringred::check
