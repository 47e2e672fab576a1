// Tensors packed into one buffer and unpacked again, scaled and converted on the way: any number of tensors in one
// launch and one pass over memory.
//
// Invariant: destination[i] = to(source[i] * factor), to the bits of scale_kernel in csrc/reduce/reduce.h (but for the
// payload of a nan), whatever the addresses, the sizes and the number of tensors.
//
// Floor: reads count * size(from) bytes and writes count * size(to) bytes, over the device's bandwidth; and 24 bytes
// for each piece, of which a large call has one for every 4096 elements.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <span>
#include <vector>

#include "csrc/base/types.h"
#include "csrc/cuda/device_table.h"

namespace ringred::cuda {

// Elements that lie together on both sides. Addresses are multiples of the size of an element; where both can be at
// multiples of 16 bytes for the same element, accesses are of 16 bytes.
struct Segment {
  const void* source;
  void* destination;
  std::size_t count;
};

// What one warp works off. Pieces have about one size, so that the load of a warp does not depend on the tensors'
// sizes.
struct Piece {
  const void* source;
  void* destination;
  unsigned count;
};
using PiecesKernel = void (*)(const Piece* pieces, unsigned piece_count, double factor, cudaStream_t stream);

// The table of pieces lies in device memory: made once for tensors that stay where they are, launched in every step,
// also in a captured graph.
class Fusion {
 public:
  // Segments must not overlap one another's destinations, nor any source. Between float16, bfloat16 and float32 any
  // pair, from float64 to itself; other types only to themselves with the factor 1. Throws a usage error otherwise.
  Fusion(std::span<const Segment> segments, DType from, DType to);

  void launch(double factor, cudaStream_t stream) const;
  std::size_t piece_count() const { return pieces_.size(); }

 private:
  DType from_;
  PiecesKernel scale_, copy_;  // null where the pair has none
  DeviceTable<Piece> pieces_;
};

// A tensor and its place in a buffer, in elements.
struct Place {
  void* tensor;
  std::size_t offset;
  std::size_t count;
};
std::vector<Segment> packed(std::span<const Place> places, void* buffer, DType buffer_dtype);
std::vector<Segment> unpacked(std::span<const Place> places, const void* buffer, DType buffer_dtype);

}  // namespace ringred::cuda
