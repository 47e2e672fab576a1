// Links between ranks that are threads of one process: FIFOs on the heap.
//
// Invariant: a LocalLinks is used by its rank's thread only, and not after its LocalNetwork has gone.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "csrc/link/fifo.h"
#include "csrc/link/link.h"

namespace ringred {

// The memory of the FIFOs of `size` ranks, `lanes` from every rank to every rank.
class LocalNetwork {
 public:
  LocalNetwork(int size, int lanes, std::size_t slots, std::size_t slot_bytes)
      : size_(size),
        lanes_(lanes),
        slots_(slots),
        slot_bytes_(slot_bytes),
        memory_(new (std::align_val_t{Fifo::line_bytes}) std::byte[total_bytes()]) {
    std::memset(memory_.get(), 0, total_bytes());
  }

  int size() const { return size_; }
  int lanes() const { return lanes_; }
  std::size_t slot_bytes() const { return slot_bytes_; }

  Fifo fifo(int from, int to, int lane) {
    const std::size_t number = static_cast<std::size_t>((from * size_ + to) * lanes_ + lane);
    return Fifo(memory_.get() + number * Fifo::memory_bytes(slots_, slot_bytes_), slots_, slot_bytes_);
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{Fifo::line_bytes}); }
  };

  std::size_t total_bytes() const {
    return static_cast<std::size_t>(size_ * size_ * lanes_) * Fifo::memory_bytes(slots_, slot_bytes_);
  }

  int size_;
  int lanes_;
  std::size_t slots_;
  std::size_t slot_bytes_;
  std::unique_ptr<std::byte[], Free> memory_;
};

// One rank's ends of them.
class LocalLinks {
 public:
  LocalLinks(LocalNetwork& network, int rank) : lanes_(network.lanes()), slot_bytes_(network.slot_bytes()) {
    for (int peer = 0; peer < network.size(); ++peer)
      for (int lane = 0; lane < lanes_; ++lane) {
        to_.push_back(network.fifo(rank, peer, lane));
        from_.push_back(network.fifo(peer, rank, lane));
      }
  }

  Fifo& fifo_to(int peer, int lane) { return to_[number(peer, lane)]; }
  Fifo& fifo_from(int peer, int lane) { return from_[number(peer, lane)]; }
  std::size_t slot_bytes() const { return slot_bytes_; }
  void notify(int) {}  // threads poll; none sleeps

 private:
  std::size_t number(int peer, int lane) const { return static_cast<std::size_t>(peer * lanes_ + lane); }

  int lanes_;
  std::size_t slot_bytes_;
  std::vector<Fifo> to_;
  std::vector<Fifo> from_;
};

static_assert(Links<LocalLinks>);

}  // namespace ringred
