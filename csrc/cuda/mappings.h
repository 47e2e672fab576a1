// Peers' memory, mapped here: opened once, kept, and closed in order.
//
// An allocation is known by its owner, its addresses there and its identity, so one that was freed and allocated again
// at the same address is another: the mapping of the old one is closed before the new one is opened. A mapping that
// nobody holds stays open, since tensors come back; the longest unused of too many goes.
//
// How memory ends (end_sharing). Freeing memory that a peer has open is undefined behaviour, and so is closing what
// work on a stream still uses; so, on every rank:
//   1. its own work that uses peers' memory is over (waited for, with a deadline);
//   2. it closes all its mappings;
//   3. it meets all peers, who have done 1 and 2;
//   4. only then it frees what it has shared.
// Whoever cannot meet, because a peer died or a deadline passed, frees nothing: the memory goes with the process.
//
// Used by one thread at a time.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "csrc/base/function_ref.h"
#include "csrc/cuda/share.h"

namespace ringred::cuda {

class Mappings {
  struct Entry;

 public:
  // Mappings that nobody holds, which are kept. Torch takes device memory in blocks of at least 20 MiB, so this is more
  // than its blocks in use at once.
  static constexpr std::size_t most_idle = 128;

  // Holds a range of a peer's memory open. To be given back when no work uses it any more.
  class Lease {
   public:
    DevicePointer address() const { return address_; }

   private:
    friend Mappings;
    Lease(std::shared_ptr<const Entry> entry, DevicePointer address) : entry_(std::move(entry)), address_(address) {}

    std::shared_ptr<const Entry> entry_;  // null for memory of this process
    DevicePointer address_;
  };

  // A lease, or why there is none: then the peer's memory has to be staged.
  struct Opening {
    std::optional<Lease> lease;
    std::string refusal;
  };

  Mappings(Gpu gpu, const ProcessIdentity& self) : gpu_(std::move(gpu)), self_(self) {}
  Mappings(const Mappings&) = delete;
  ~Mappings() { close_all(); }

  // Whether open() needs descriptors for a range.
  bool needs_descriptors(const SharedRange& range) const;

  // Memory of this process is used as it is. The descriptors stay the caller's. Throws a usage error where the owner
  // freed memory that a lease still holds.
  Opening open(const SharedRange& range, std::span<const int> descriptors = {});

  // Also those that are held: to be called when no work uses them.
  void close_all();

  std::size_t open_count() const { return entries_.size(); }

 private:
  struct Entry {
    SharedRange range;
    DevicePointer base = 0;  // here
  };
  using EntryPointer = std::shared_ptr<const Entry>;

  EntryPointer find(const SharedRange& range);
  void make_room(const SharedRange& range);
  void close(const Entry& entry);
  std::string map(const SharedRange& range, std::span<const int> descriptors, DevicePointer& base);
  Result map_pieces(const SharedRange& range, std::span<const int> descriptors, DevicePointer base);
  void unmap(DevicePointer base, std::uint64_t piece_bytes, std::uint32_t pieces, std::uint64_t reserved);

  const Gpu gpu_;
  const ProcessIdentity self_;
  std::list<EntryPointer> entries_;  // the last used comes first; held by these and by leases
};

// The end of memory that is shared, as described above. `work_ends` and `meet` say whether they succeeded; returns
// whether `free_own` was called.
bool end_sharing(Mappings& mappings, FunctionRef<bool()> work_ends, FunctionRef<bool()> meet,
                 FunctionRef<void()> free_own);

}  // namespace ringred::cuda
