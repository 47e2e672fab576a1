// The kernels that a communicator launches, as a table: device_kernels() gives those of the device, a test its own.
//
// Invariant: the context of the communicator's device is current in every call; addresses are the device's; work is
// enqueued on the stream and nothing waits for it. A stream of the CUDA runtime (cudaStream_t) is the driver's Stream,
// and a device pointer of the runtime (void*) has the value of a DevicePointer.
#pragma once

#include <cstddef>
#include <memory>

#include "csrc/base/types.h"
#include "csrc/cuda/abi.h"
#include "csrc/cuda/leaf.h"
#include "csrc/cuda/mail.h"
#include "csrc/cuda/player.h"
#include "csrc/cuda/reduce.h"

namespace ringred::cuda {

// A tape in the device's memory, which it may use as long as this lives.
class UploadedTape {
 public:
  virtual ~UploadedTape() = default;
  virtual const DeviceTape& view() const = 0;
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  virtual void allreduce(Leaf leaf, const LeafCall& call, Stream stream) = 0;
  virtual void play(const Performance& performance, Stream stream) = 0;
  virtual void reduce(const ReduceArrays& arrays, std::size_t count, DType dtype, Op op, std::int64_t divisor,
                      Stream stream) = 0;
  // to[i] = from[i] * factor; a copy of the bits where the factor is 1. Addresses are multiples of an element's size,
  // the same or without overlap.
  virtual void scale(DevicePointer from, DevicePointer to, std::size_t count, DType dtype, double factor,
                     Stream stream) = 0;
  virtual void zero(DevicePointer address, std::size_t bytes, Stream stream) = 0;

  // Returns when the tape is there.
  virtual std::unique_ptr<UploadedTape> upload(const Tape& tape, const Wiring& wiring, int stripes) = 0;

  // What the device runs at the same time, for each of `seats` ranks that share it.
  virtual int most_blocks(Leaf leaf, DType dtype, int seats, unsigned threads) = 0;
  virtual int most_stripes(DType dtype, int seats, int lanes, unsigned threads) = 0;
  virtual long long ticks(double seconds) = 0;  // of clock64
};

}  // namespace ringred::cuda
