// How much memory a communicator takes, and from which length on vectors take which way. All ranks have the same.
//
// None of these numbers has been measured on a GPU yet; each says what it follows from. Tests use small ones.
#pragma once

#include <cstddef>

#include "csrc/base/round.h"
#include "csrc/cuda/tape.h"

namespace ringred::cuda {

struct Sizes {
  // Packets move twice the vector over each link and save a meeting of all ranks, about 2 us: 256 KiB more over all of
  // a rank's links are 0.6 us at 450 GB/s, a quarter of it.
  std::size_t packet_bytes = std::size_t{256} << 10;  // divided by the ranks
  // One-shot reads n-1 vectors over links where two-shot reads and writes 2(n-1)/n, and saves two copies and a meeting,
  // about 6 us: 2 MiB are 4.7 us at 450 GB/s.
  std::size_t one_shot_bytes = std::size_t{2} << 20;  // divided by the ranks
  // Copies of a piece, into the buffer and out of it, hide behind the two_shot of another one; a piece is so long that
  // launches (three, of about 2.5 us) are a small part of it: 32 MiB take 140 us at 450 GB/s.
  std::size_t piece_bytes = std::size_t{32} << 20;
  std::size_t slice_bytes = std::size_t{1} << 20;  // of staging: a copy of 1 MiB takes 40 us at 25 GB/s

  // Of a kernel that waits for its peers: no more than leave room for the caller's own kernels. Bytes in flight on a
  // device: 32 blocks * 512 threads * 4 units of 16 bytes = 1 MiB for each peer, more than 450 GB/s need for 2 us.
  int blocks = 32;
  int threads = 512;

  // Of schedules: as many stripes as blocks of the leaves for one lane, and FIFOs of 4 slots.
  int stripes = 16;
  int slots = 4;
  int pipeline_chunks = 4;                          // of trees
  std::size_t slot_bytes = std::size_t{128} << 10;  // a window of a ring of 8 is 1 MiB
  std::size_t packet_slot_bytes = std::size_t{8} << 10;

  friend bool operator==(const Sizes&, const Sizes&) = default;

  // The longest vector of a leaf, in whole units for each of its blocks.
  std::size_t packet_limit(int size) const { return limit(packet_bytes, size); }
  std::size_t one_shot_limit(int size) const { return limit(one_shot_bytes, size); }

 private:
  static std::size_t limit(std::size_t bytes, int size) { return bytes / static_cast<std::size_t>(size); }
};

}  // namespace ringred::cuda
