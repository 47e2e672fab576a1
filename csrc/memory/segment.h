// One shared memory segment: a sparse, sealed memfd, mapped whole. It is a large range of addresses of which few pages
// exist; an offset into it is the same place for every rank that maps it.
//
// Invariant: its size never changes (sealed), so an access inside the range never faults for being past the end.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace ringred {

class Segment {
 public:
  // A new segment of this process. Throws a system error that says what was asked for and why it failed.
  static Segment create(std::size_t bytes, bool huge_pages);

  // The segment behind a descriptor that a peer handed over. The descriptor stays the caller's.
  static Segment map(int descriptor);

  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&&) = delete;
  ~Segment();

  std::byte* base() const { return base_; }
  std::size_t size() const { return size_; }
  int descriptor() const { return descriptor_; }  // -1 for a peer's

  // Makes the pages of a range exist, written by this process (first touch), or throws a system error. Afterwards an
  // access cannot fail for lack of memory.
  void commit(std::size_t offset, std::size_t bytes);

  // Gives the pages of a range back; they read as zero afterwards.
  void release(std::size_t offset, std::size_t bytes);

 private:
  Segment(std::byte* base, std::size_t size, int descriptor) : base_(base), size_(size), descriptor_(descriptor) {}

  std::byte* base_;
  std::size_t size_;
  int descriptor_;
};

// Addresses without memory for a mapping of `bytes`, whole pages: as far into a huge page as `phase`, a whole number of
// pages. Null if there are none.
std::byte* reserve_addresses(std::size_t bytes, std::size_t phase);

// The peers' segments, mapped here as long as somebody holds this.
using MappedSegments = std::shared_ptr<const std::vector<Segment>>;

}  // namespace ringred
