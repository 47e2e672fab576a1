// The arena: the part of a rank's own segment in which its arrays live. Allocation is local, never collective; peers
// find an array by its offset.
//
// Invariant: the free ranges are disjoint, never adjacent, and together with the allocated ones cover the arena.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

#include "csrc/memory/segment.h"

namespace ringred {

class Arena : public std::enable_shared_from_this<Arena> {
 public:
  // Memory of the arena, zeroed when new; given back with the last owner. It keeps the segment mapped, so an array
  // outlives the communicator that it was made for.
  class Block {
   public:
    Block(std::shared_ptr<Arena> arena, std::size_t offset, std::size_t bytes);
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    ~Block();
    std::byte* data() const { return arena_->segment_.base() + offset_; }
    std::size_t size() const { return bytes_; }

   private:
    std::shared_ptr<Arena> arena_;
    std::size_t offset_, bytes_;
  };

  // The arena is [start, end of the segment).
  Arena(Segment segment, std::size_t start);

  std::shared_ptr<Block> allocate(std::size_t bytes);

  // The offset of [data, data + bytes) in the segment plus one, or 0 if it does not lie inside the arena.
  std::size_t location(const void* data, std::size_t bytes) const;

  // Freed memory is not used again from now on: a peer that was cut off in the middle of a call may still write to it.
  void retire();

  Segment& segment() { return segment_; }

 private:
  void free(std::size_t offset, std::size_t bytes);

  Segment segment_;
  const std::size_t start_;
  const int owner_;   // the process that made it: a forked child shares the pages and must not give them back
  std::mutex mutex_;  // guards free_; no collective takes it
  std::map<std::size_t, std::size_t> free_;  // offset to bytes
  bool retired_ = false;                     // guarded by mutex_, too
};

}  // namespace ringred
