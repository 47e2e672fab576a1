// Plays a schedule on the device: an allreduce in place, in one kernel.
//
// A block walks one lane of one rank for one stripe of the vector: it takes, combines, stores and sends a message
// without leaving the kernel. A stripe is cut into windows that are so small that every message fits a slot, and the
// tape is played once for each window, one after the other without a pause. Lanes of a rank and stripe wait for one
// another by counts of the moves that they have ended; stripes share nothing.
//
// Partial sums travel in the dtype of the vector: halves are added in fp32 and rounded once for each move. Who wants
// partial sums in fp32 hands over an fp32 vector.
//
// Floor of a call: the reads and writes that the tape counts (traffic_of in tape.h), of a ring on n ranks (6n-4)/n
// times the vector for each rank, over the bandwidth of the memory that they share.
//
// Invariants: all ranks make the same calls, with the same tape, shape, count, dtype, op and stripes, each on a stream
// of its own or all in one launch (virtual ranks). After a call that reported, all ranks' mail and progress are zeroed
// before the next.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/base/types.h"
#include "csrc/cuda/abi.h"
#include "csrc/cuda/mail.h"
#include "csrc/cuda/report.h"
#include "csrc/cuda/tape.h"

namespace ringred::cuda {

// How a message travels: as 16-byte vectors, followed by a number; or as packets, which arrive sooner and take twice
// the room.
enum class Carrier : int { vectors = 0, packets = 1 };

// Of one lane and stripe of a rank. Zeroed memory is right for the first call.
struct Progress {
  std::uint64_t calls;  // that this block has ended, written by itself
  std::uint64_t ended;  // (call number << 32) + moves ended in this call: written with release, read by other lanes
};

// The inboxes of a rank's FIFOs with one peer on one lane; -1: none.
struct Door {
  int out;  // at the peer
  int in;   // here
};

// A tape, its doors and its progress, in the device's memory.
struct DeviceTape {
  int chunks = 0;
  int lanes = 0;
  int widest = 0;
  const int* lane_begin = nullptr;
  const Move* moves = nullptr;
  const Run* runs = nullptr;
  const Wait* waits = nullptr;
  const Door* doors = nullptr;   // by lane, peer
  Progress* progress = nullptr;  // by lane, stripe
};

// One rank of a launch.
struct Seat {
  int rank = 0;
  void* data = nullptr;
  std::byte* mail[most_ranks] = {};  // everybody's, as this rank's device sees it
  Report* report = nullptr;
  DeviceTape tape;
};

struct Performance {
  Seat seats[most_ranks];
  int seat_count = 1;
  MailShape shape;
  std::size_t count = 0;  // elements
  DType dtype = DType::f32;
  Op op = Op::sum;
  Carrier carrier = Carrier::vectors;
  int stripes = 1;
  unsigned threads = 256;  // of a block
  long long patience = 0;  // of one wait, in ticks of clock64
};

// Throws a usage error where it cannot be played, a system error where CUDA refuses. Does not wait for the device.
void play(const Performance& performance, Stream stream);

// The most stripes that the current device can run at the same time, of `lanes` lanes for each of `seats` ranks.
int most_stripes(DType dtype, int seats, int lanes, unsigned threads);

}  // namespace ringred::cuda
