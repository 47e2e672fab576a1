// Memory of the same size on every rank, which all ranks' devices reach; or only this rank's, where vectors are staged.
//
// Invariant: what peers may have opened is freed by free() alone, to be called when all of them have closed their
// mappings (end_sharing, in mappings.h); otherwise it goes with the process, since a peer may still use it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "csrc/cuda/device_memory.h"
#include "csrc/cuda/mappings.h"

namespace ringred::cuda {

class SymmetricMemory {
 public:
  // This rank's own part.
  SymmetricMemory(const Gpu& gpu, std::size_t bytes)
      : gpu_(gpu), bytes_(bytes), own_(std::make_unique<DeviceMemory>(gpu, bytes)) {}
  SymmetricMemory(SymmetricMemory&&) = default;
  ~SymmetricMemory();

  // What peers need to open it.
  SharedRange part(const ProcessIdentity& self);

  // Opens the parts of all ranks. Throws a system error where a peer's cannot be opened.
  void open(Mappings& mappings, std::span<const SharedRange> parts, int rank);

  std::size_t bytes() const { return bytes_; }
  DevicePointer address() const { return own_->address(); }
  DevicePointer address_of(int rank) const { return leases_[static_cast<std::size_t>(rank)].address(); }

  void close() { leases_.clear(); }    // when no work uses it any more
  void abandon() { own_->abandon(); }  // where work may still use it
  void free();

 private:
  Gpu gpu_;
  std::size_t bytes_;
  std::unique_ptr<DeviceMemory> own_;    // null where it was moved from
  bool shared_ = false;                  // a peer may have opened it
  std::vector<Mappings::Lease> leases_;  // by rank
};

}  // namespace ringred::cuda
