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
    std::size_t offset() const { return offset_; }  // in the segment
    std::size_t size() const { return bytes_; }

    // Its memory stays as it is when its last owner is gone: peers read it as long as they like.
    void keep() { kept_ = true; }

    // Makes the pages of a part of a reserved block exist.
    void commit(std::size_t begin, std::size_t bytes) { arena_->segment_.commit(offset_ + begin, bytes); }

   private:
    std::shared_ptr<Arena> arena_;
    std::size_t offset_, bytes_;
    bool kept_ = false;
  };

  // The arena is [start, end of the segment).
  Arena(Segment segment, std::size_t start);

  std::shared_ptr<Block> allocate(std::size_t bytes);

  // Addresses without memory: pages come with Block::commit.
  std::shared_ptr<Block> reserve(std::size_t bytes);

  // The offset of [data, data + bytes) in the segment plus one, or 0 if it does not lie inside the arena.
  std::size_t location(const void* data, std::size_t bytes) const;

  // Freed memory is not used again from now on: a peer that was cut off in the middle of a call may still write to it.
  void retire();
  bool retired();

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
