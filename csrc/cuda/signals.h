// Words in host memory by which the streams of several ranks wait for one another.
//
// A word counts upwards, modulo 2^32; a wait is for a count or anything up to 2^31 beyond it. It is written by the
// streams of one rank, after all that they did before (a write value operation has a memory barrier of system scope),
// and read by everyone's.
//
// Where the driver has no stream memory operations, a host function on the writer's stream stores the word, and the
// reader's host waits for it before it enqueues what comes next. A host function never waits: the driver may run all of
// them on one thread, and the one that is waited for could be behind. So ranks with and without these operations work
// together.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "csrc/base/function_ref.h"
#include "csrc/cuda/device.h"

namespace ringred::cuda {

// As the host and the device address it.
struct HostWord {
  std::atomic<std::uint32_t>* host;
  DevicePointer device;
};

inline bool has_come(std::uint32_t count, std::uint32_t wanted) {
  return static_cast<std::int32_t>(count - wanted) >= 0;
}

class Signals {
 public:
  // Finds out what the driver can by writing 0 to `trial`, a word that nobody reads, on a stream.
  Signals(const Gpu& gpu, Stream stream, HostWord trial);

  bool on_device() const { return on_device_; }

  // Neither waits, but for await() where on_device() is not true: then `wait_on_host` has to wait until a condition
  // holds, or throw. The context is the current one.
  using HostWaiting = FunctionRef<void(FunctionRef<bool()> ready)>;
  void post(Stream stream, HostWord word, std::uint32_t count, HostWaiting wait_on_host);
  void await(Stream stream, HostWord word, std::uint32_t count, HostWaiting wait_on_host);

 private:
  // What a host function is to store. Reused in turn: by then it has usually run.
  struct Store {
    std::atomic<std::uint32_t>* word = nullptr;
    std::uint32_t count = 0;
    std::atomic<bool> pending{false};
  };
  static void run(void* store);

  const Driver& driver_;
  const bool on_device_;
  std::array<Store, 64> stores_;
  std::size_t next_store_ = 0;
};

}  // namespace ringred::cuda
