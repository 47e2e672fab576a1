// What a rank tells its peers of device memory so that they can reach it: who has it, which allocation it is, and by
// which route.
//
// A route maps whole allocations, never less. `legacy` is a handle of 64 bytes (cuIpcGetMemHandle), for what cudaMalloc
// gave. `descriptors` are file descriptors, one for each piece of memory that was made for it (cuMemCreate with
// CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), as in the expandable segments of torch; the caller sends them over a Unix
// socket. Memory of cudaMallocAsync and managed memory have neither: the reason says so, and such tensors are staged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "csrc/cuda/device.h"

namespace ringred::cuda {

// Processes of one machine, in whatever namespace.
struct ProcessIdentity {
  std::uint64_t number = 0;        // the PID
  std::uint64_t number_space = 0;  // of the PID: the inode of its namespace
  friend bool operator==(const ProcessIdentity&, const ProcessIdentity&) = default;

  static ProcessIdentity of_this_process();
};

enum class Route : std::uint32_t { none, legacy, descriptors };

// Plain bytes, for shared memory or a message.
struct SharedRange {
  ProcessIdentity owner;
  Uuid device;
  DevicePointer address = 0, bytes = 0;    // of the range, as its owner sees it
  DevicePointer base = 0, base_bytes = 0;  // of what a route maps: it contains the range
  std::uint64_t identity = 0;              // of the memory there; a new one after the old was freed
  Route route = Route::none;
  std::uint32_t pieces = 0;  // descriptors, of base_bytes / pieces each
  IpcHandle handle{};
  char reason[192] = {};  // why there is no route
};

static_assert(std::is_trivially_copyable_v<SharedRange>);

// Descriptors that are closed with it.
class Descriptors {
 public:
  Descriptors() = default;
  Descriptors(Descriptors&& other) noexcept : numbers_(std::move(other.numbers_)) { other.numbers_.clear(); }
  Descriptors& operator=(Descriptors&&) = delete;
  ~Descriptors();

  void add(int descriptor) { numbers_.push_back(descriptor); }
  void reserve(std::size_t count) { numbers_.reserve(count); }
  const std::vector<int>& numbers() const { return numbers_; }

 private:
  std::vector<int> numbers_;
};

// Throws a usage error where the range is not device memory of one allocation.
SharedRange share(const Gpu& gpu, const ProcessIdentity& self, DevicePointer address, std::size_t bytes);

// Throws a usage error where an address is not one of memory of this device, or of managed memory.
void check_on_device(const Gpu& gpu, DevicePointer address, std::size_t bytes);

// What goes with a range whose route is descriptors; to be closed when all peers have theirs.
Descriptors descriptors_of(const Gpu& gpu, const SharedRange& range);

}  // namespace ringred::cuda
