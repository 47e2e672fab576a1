// Allreduces on memory that all ranks' devices load and store: which leaf or schedule a vector takes, and the memory
// for it.
//
//   bytes of the vector       way
//   up to packet_limit        packets, in place in the output
//   up to one_shot_limit      one_shot, in place in the output
//   above                     two_shot, in place in symmetric memory, or else piece by piece through a buffer
//   an algorithm was named    the player, in place in the output
//
// What is in place there needs an output at a multiple of 16 bytes; another one goes through the buffer, too.
//
// Pieces. Piece k goes through half k % 2 of the buffer, in which all ranks' devices work:
//   in(k)    copies it, scaled, from the input into this rank's half       on the stream `copies`
//   shot(k)  two_shot on all ranks' halves                                 on the stream of the call
//   out(k)   copies it, scaled, from the half into the output              on the stream `copies`
//
//   copies   in(0) in(1) out(0) in(2) out(1) in(3) ...
//   call           shot(0) shot(1) shot(2) ...
//
// shot(k) follows in(k) and out(k) follows shot(k), by events. Who touches a half, and why nobody is overtaken:
//   1. Peers touch this rank's half within their shot(k) only, between the two meetings of its blocks (leaf.h).
//   2. This rank's shot(k) ends when all its blocks have come through the second meeting, where every peer's block of
//   the
//      same number has ended its work on the half. in(k+2) comes after out(k), which follows shot(k).
//   3. No peer begins to work in its shot(k+2) before the first meeting with this rank's, which follows in(k+2).
// So one half would be right, too; the second lets copies run while links are busy. The next call's copies follow this
// call's, whose end the stream of the call follows.
//
// Invariant: memory of peers is reached only within kernels that meet all ranks, and these run one after the other, on
// the stream of the call.
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/cuda/kernels.h"
#include "csrc/cuda/reduction.h"
#include "csrc/cuda/sizes.h"
#include "csrc/cuda/streams.h"
#include "csrc/cuda/symmetric_memory.h"

namespace ringred::cuda {

// An algorithm that is ready to be played by this rank, with memory of its own for messages.
struct ReadyAlgorithm {
  Algorithm algorithm;
  MailShape shape;
  int stripes;
  const SymmetricMemory& mail;  // zeroed and open
  std::unique_ptr<UploadedTape> tape;
};

class Direct {
 public:
  struct Setup {
    Gpu gpu;
    int rank;
    int size;
    Sizes sizes;
    Kernels& kernels;
    Report* report;      // as the device addresses it
    long long patience;  // of a wait in a kernel, in ticks
    int blocks;          // of a kernel; the same on all ranks
  };

  static std::size_t bytes(int size, const Sizes& sizes);  // of `memory`

  // `memory` is zeroed and open. It outlives this, as does that of algorithms.
  Direct(Setup setup, const SymmetricMemory& memory);

  void add(ReadyAlgorithm ready) { algorithms_.push_back(std::move(ready)); }
  bool has(Algorithm algorithm) const { return find(algorithm) != nullptr; }

  // Enqueue on the stream of the call; in a capture, all of it becomes part of that.
  void allreduce(Stream stream, DevicePointer input, DevicePointer output, const Reduction& reduction);
  void allreduce_symmetric(Stream stream, const SymmetricMemory& memory, std::size_t offset,
                           const Reduction& reduction);

  const OwnStream& copies() const { return copies_; }

 private:
  const ReadyAlgorithm* find(Algorithm algorithm) const;
  bool is_long(const Reduction& reduction) const;
  DevicePointer half(int rank, std::size_t piece) const;
  std::size_t piece_elements(DType dtype) const;

  void in_place(Stream stream, DevicePointer data, std::size_t count, const Reduction& reduction);
  void leaf(Leaf leaf, Stream stream, LeafCall& call);
  LeafCall leaf_call(std::size_t count, const Reduction& reduction) const;
  void two_shot(Stream stream, std::size_t piece, std::size_t count, const Reduction& reduction);
  void play(const ReadyAlgorithm& ready, Stream stream, DevicePointer data, std::size_t count,
            const Reduction& reduction);

  void through_buffer(Stream stream, DevicePointer input, DevicePointer output, const Reduction& reduction);
  void in_pieces(Stream stream, DevicePointer input, DevicePointer output, const Reduction& reduction);
  void play_pieces(Stream stream, Stream copies, DevicePointer input, DevicePointer output, const Reduction& reduction);

  const Setup setup_;
  const LeafShape shape_;
  const SymmetricMemory& memory_;
  std::vector<ReadyAlgorithm> algorithms_;
  EventPool events_;
  OwnStream copies_;
};

}  // namespace ringred::cuda
