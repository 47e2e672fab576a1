// What ranks have to agree on, told through host memory without waiting; and why a rank takes no further part.
//
//   1. A rank numbers its calls from 1. Announcing call c, it writes what the call is, and a hash of this and all
//   earlier
//      calls, into entry c % entries of its host block, with the number c last.
//   2. At each call, and while it waits, it looks at every peer's newest entry that it has come to itself, and compares
//      hashes. If they are the same, all calls so far were. If not, the first entries that differ say what each rank
//      did.
//   3. Numbers of an entry only grow, so an entry whose number is c before and after it was read is that of call c.
//
// A rank that is more than `entries` calls ahead has overwritten what a peer would compare with: then the rank behind
// compares when it has caught up, by the hash, in which what is gone is still contained. Streams hold about as many
// calls, so that a rank is stopped by its own device before it is further ahead.
//
// Invariant: a host block is written by its owner alone, but for the report (report.h), which whoever breaks off
// raises.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/base/types.h"
#include "csrc/cuda/report.h"

namespace ringred::cuda {

// A call, in what all ranks must agree on.
struct Announcement {
  enum Kind : std::uint8_t { allreduce, symmetric };
  Kind kind = allreduce;
  DType dtype = DType::f32;
  Op op = Op::sum;
  bool captured = false;
  std::int8_t algorithm = -1;  // -1: by size
  std::uint16_t region = 0;    // of symmetric memory
  std::uint64_t tag = 0;       // in 48 bits
  std::uint64_t offset = 0;    // in it
  std::uint64_t count = 0;
  double prescale = 1, postscale = 1;

  std::string text() const;  // "allreduce(count=12, dtype=float32, op=Sum)"
};

// What a rank's block of host memory begins with. Zeroed memory is the state before the first call.
struct HostBlock {
  static constexpr std::size_t entries = 1024;
  static constexpr std::size_t words = 6;
  enum State : std::uint32_t { present, left, broken };  // a state only changes to a later one

  struct alignas(64) Entry {
    std::atomic<std::uint64_t> number;
    std::atomic<std::uint64_t> hash;
    std::atomic<std::uint64_t> words[HostBlock::words];
  };

  alignas(64) std::atomic<std::uint32_t> state;
  std::atomic<std::uint32_t> kind;  // of the error that broke it; written before the state, as is the reason
  char reason[1016];
  alignas(64) Report report;                     // of this rank's kernels
  alignas(64) std::atomic<std::uint64_t> calls;  // that have been announced
  Entry announced[entries];
};

class Announcements {
 public:
  Announcements(std::vector<HostBlock*> blocks, int rank);

  std::uint64_t calls() const { return calls_; }
  std::uint64_t calls_of(int rank) const { return block(rank).calls.load(std::memory_order_acquire); }

  void announce(const Announcement& announcement);

  // Who differs from this rank, in words; "" where nobody does so far.
  std::string difference();

 private:
  struct Known {
    std::uint64_t hash;
    Announcement announcement;
  };

  HostBlock& block(int rank) const { return *blocks_[static_cast<std::size_t>(rank)]; }
  std::optional<Known> read(int rank, std::uint64_t call) const;
  std::string difference_from(int peer, std::uint64_t newest) const;

  const std::vector<HostBlock*> blocks_;
  const int rank_;
  std::uint64_t calls_ = 0, hash_ = 0;
  std::vector<std::uint64_t> compared_;  // by rank: the last call in which it agreed
};

}  // namespace ringred::cuda
