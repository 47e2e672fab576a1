// Memory of the arena that torch's CPU allocator hands out: a gradient that autograd computes into it can be reduced
// where it lies.
//
// torch has no stable interface for another allocator on CPUs. So the functions through which its library of tensors
// (libc10) gets and returns memory are replaced (imports.h) by ours. These pass everything on to the C library but:
// - a request for exactly as many bytes as a gradient has, while a pool is armed and has such a block left;
// - the return of such a block, at any time, by any thread.
//
// Invariants: a block is either free or torch's, and a free one is nobody's. A pool never gives more blocks of a size
// than it was made for. The C library gets back all that is its own and nothing else, also in a forked child, which
// shares the pages and takes and returns nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "csrc/memory/arena.h"

namespace ringred {

class Pool {
 public:
  // One block for each of `sizes`, in bytes; their memory comes with their first use. Unarmed.
  Pool(std::shared_ptr<Arena> arena, const std::vector<std::size_t>& sizes);
  ~Pool();  // free blocks are given back, others when torch returns them
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Whether torch gets memory from here. Any thread.
  void arm(bool armed);

  // Whether a block of exactly these bytes that begins here, of any pool in this arena, is torch's at the moment.
  bool holds(const void* data, std::size_t bytes) const;

  // Blocks that have memory, for tests.
  std::size_t blocks() const;

 private:
  struct Stock;
  struct Registry;
  friend int pool_memalign(void**, std::size_t, std::size_t) noexcept;
  friend void pool_free(void*) noexcept;
  friend bool replace_allocator(const char*);

  std::shared_ptr<Stock> stock_;
};

// Has the libraries of this name take memory from pools; once for a process is enough. False: they do not import what
// is to be replaced.
bool replace_allocator(const char* library);

}  // namespace ringred
