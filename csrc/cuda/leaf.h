// Allreduce in place, directly on memory that all ranks' devices can load and store. A block of a rank works with the
// blocks of the same number of the other ranks, and with no others.
//
// packets, for the shortest vectors: every rank stores its vector into every peer's memory as packets (mail.h), polls
// what arrives and adds in rank order. One kernel, no barrier: n-1 times the vector written and as much read, in
// packets.
//   1. Packets of call k go into bank k % 2 and carry the number k.
//   2. Two banks suffice: a block writes into a bank at call k+2 after its call k+1 has ended, in which it saw packets
//   of
//      every peer's block of call k+1. That kernel of the peer began after the peer's kernel of call k had ended, so
//      nobody reads the bank's packets of call k any more. All of a block's units are its own in every call (unit u
//      belongs to block u / share), so its calls are numbered by itself.
//   3. Call k with k % 2^30 < 2 writes whole banks, so that no packet survives until its number comes round.
//
// one_shot, for middle sizes: the same with 16-byte vectors. Every rank copies its vector into a bank of its own
// memory, says so to all peers, waits for all, and adds in rank order what it reads from all memories. One phase, n
// times the vector read by each rank; two banks suffice as in 2.
//
// two_shot, for large sizes: rank r owns slice r, reads it from all ranks' buffers, adds in registers in rank order and
// stores the result into all buffers. 2 times the vector of traffic for each rank, which is the least there is for n
// private results: the floor of n ranks on one device is 2 n S / bandwidth.
//   1. Blocks of a number meet: all ranks' vectors are there.
//   2. Only the owner touches its slice, so results may overwrite what they were made of.
//   3. They meet again: all slices that the block will hand out are there when it ends. A meeting is a number that each
//      block stores, with release, in every peer's line, and then waits for, with acquire, in its own; it only grows.
//
// Invariants: all ranks make the same calls, each on a stream of its own or all in one launch (virtual ranks), and a
// rank's calls run one after the other. Halves are added in fp32 and rounded once. All ranks get the same bits. After a
// call that reported, all ranks' memory is zeroed before the next.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/base/types.h"
#include "csrc/cuda/abi.h"
#include "csrc/cuda/report.h"
#include "csrc/cuda/tape.h"

namespace ringred::cuda {

enum class Leaf : int { packets, one_shot, two_shot };

// The words of one block of a rank.
struct alignas(128) LeafLine {
  std::uint64_t meeting[most_ranks];  // of two_shot, by the peer that writes it
  std::uint64_t ready[most_ranks];    // of one_shot
  std::uint64_t calls[3];             // by Leaf; written by the block itself
};

// A rank's memory, which all peers map; zeroed memory is right for the first call.
//
//   | lines: [block] | banks of one_shot: [block][2] | banks of packets: [block][2][from] |
struct LeafShape {
  int size = 1;
  int blocks = 1;                      // the most of any call
  std::size_t share_bytes = 0;         // of the vector, for a block of one_shot; whole units of 16 bytes
  std::size_t packet_share_bytes = 0;  // for a block of packets, which take twice as much

  constexpr std::size_t line(int block) const { return static_cast<std::size_t>(block) * sizeof(LeafLine); }
  constexpr std::size_t bank(int block, int bank) const {
    return line(blocks) + static_cast<std::size_t>(block * 2 + bank) * share_bytes;
  }
  constexpr std::size_t packets(int block, int bank, int from) const {
    return this->bank(blocks, 0) + static_cast<std::size_t>((block * 2 + bank) * size + from) * packet_share_bytes * 2;
  }
  constexpr std::size_t bytes() const { return packets(blocks, 0, 0); }
};

// One rank of a launch. By rank: everybody's, as this rank's device sees it.
struct LeafSeat {
  int rank = 0;
  void* buffers[most_ranks] = {};  // of two_shot; the others read their own only
  std::byte* memory[most_ranks] = {};
  Report* report = nullptr;
};

struct LeafCall {
  LeafSeat seats[most_ranks];
  int seat_count = 1;
  LeafShape shape;
  std::size_t count = 0;  // elements
  DType dtype = DType::f32;
  Op op = Op::sum;
  int blocks = 1;          // of two_shot, for each rank; the others take as many as the vector has shares
  unsigned threads = 256;  // of a block
  long long patience = 0;  // of one wait, in ticks of clock64
};

// Throws a usage error where it cannot be done, a system error where CUDA refuses. Does not wait for the device.
void allreduce(Leaf leaf, const LeafCall& call, Stream stream);

// The blocks of this leaf that the current device can run at the same time for each of `seats` ranks.
int most_blocks(Leaf leaf, DType dtype, int seats, unsigned threads);

}  // namespace ringred::cuda
