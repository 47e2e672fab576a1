// How the elements of one call are divided over threads: in accesses of 16 bytes where all arrays allow it, the
// elements before and behind those one by one, and all of them one by one where the arrays are aligned differently.
//
// Invariant: every element has one thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/cuda/elements.cuh"

namespace ringred::cuda {

template <class Stored>
inline constexpr unsigned vector_elements = sizeof(Stored) < access_bytes ? access_bytes / sizeof(Stored) : 1;

struct Stretch {
  std::size_t count, head, vectors;

  // Calls body<wide>(start) for this thread's share, with as many elements as fit an access or with one.
  template <unsigned wide, class Body>
  __device__ __forceinline__ void walk(Body body) const {
    const std::size_t thread = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x;
    const std::size_t threads = gridDim.x * std::size_t{blockDim.x}, covered = vectors * wide;
    for (std::size_t v = thread; v < vectors; v += threads) body.template at<wide>(head + v * wide);
    for (std::size_t i = thread; i < count - covered; i += threads) body.template at<1>(i < head ? i : i + covered);
  }

  std::size_t items() const { return vectors > 0 ? vectors : count; }
};

// Whether all arrays of a call have the same remainder of 16 bytes.
class Alignment {
 public:
  void add(const void* array) {
    const std::size_t remainder = reinterpret_cast<std::uintptr_t>(array) % access_bytes;
    alike_ = alike_ && (remainder_ == none || remainder_ == remainder);
    remainder_ = remainder;
  }
  template <class Stored>
  Stretch stretch(std::size_t count) const {
    const std::size_t head = (access_bytes - remainder_) % access_bytes / sizeof(Stored);
    if (!alike_ || head >= count) return {count, 0, 0};
    return {count, head, (count - head) / vector_elements<Stored>};
  }

 private:
  static constexpr std::size_t none = access_bytes;
  std::size_t remainder_ = none;
  bool alike_ = true;
};

}  // namespace ringred::cuda
