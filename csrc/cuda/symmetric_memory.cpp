#include "csrc/cuda/symmetric_memory.h"

#include <string>
#include <utility>

#include "csrc/base/error.h"

namespace ringred::cuda {

SymmetricMemory::~SymmetricMemory() {
  if (own_ && shared_) own_->abandon();
}

SharedRange SymmetricMemory::part(const ProcessIdentity& self) {
  const SharedRange range = share(gpu_, self, address(), bytes_);
  shared_ = true;
  return range;
}

void SymmetricMemory::open(Mappings& mappings, std::span<const SharedRange> parts, int rank) {
  for (std::size_t peer = 0; peer < parts.size(); ++peer) {
    Mappings::Opening opening = mappings.open(parts[peer]);
    if (!opening.lease)
      fail_system("Rank " + std::to_string(rank) + " could open memory of rank " + std::to_string(peer) +
                  " before, but not " + std::to_string(bytes_) + " bytes more: " + opening.refusal);
    leases_.push_back(std::move(*opening.lease));
  }
}

void SymmetricMemory::free() {
  leases_.clear();
  shared_ = false;
  own_->free();
}

}  // namespace ringred::cuda
