// The two ways in which a unit of 16 bytes lies in a slot (mail.h).
//
// Invariant: `place` counts units from the beginning of the slot; both ends of a message cut it alike.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "csrc/cuda/waiting.cuh"
#include "csrc/cuda/words.cuh"

namespace ringred::cuda {

// Whether the message with this number writes the whole slot (mail.h).
__device__ __forceinline__ bool is_sweep(Word number, int slots) {
  return (number & ((Word{1} << 30) - 1)) < static_cast<Word>(slots);
}

// Four words of data in four packets, `stride` packets apart, so that neighbouring threads write neighbouring packets.
__device__ __forceinline__ void store_packets(Word* first, std::size_t stride, const uint4& unit, std::uint32_t flag) {
  const Word high = Word{flag} << 32;
  store_relaxed(first, high | unit.x);
  store_relaxed(first + stride, high | unit.y);
  store_relaxed(first + 2 * stride, high | unit.z);
  store_relaxed(first + 3 * stride, high | unit.w);
}

// Waits for the packets of the message whose flag is the low half of `number`.
__device__ __forceinline__ bool load_packets(uint4& unit, Word* first, std::size_t stride, Word number, int peer,
                                             const Waiting& waiting) {
  const Word flag = number & 0xffffffffu;
  return waiting.number(Awaited::packet, peer, number, [&] {
    const Word a = load_relaxed(first), b = load_relaxed(first + stride), c = load_relaxed(first + 2 * stride),
               d = load_relaxed(first + 3 * stride);
    unit = {static_cast<unsigned>(a), static_cast<unsigned>(b), static_cast<unsigned>(c), static_cast<unsigned>(d)};
    const bool arrived = a >> 32 == flag && b >> 32 == flag && c >> 32 == flag && d >> 32 == flag;
    return arrived ? number : Word{0};
  });
}

struct Vectors {
  static constexpr int line = 0;
  static constexpr unsigned batch = 4;     // units that a thread has in flight for each source
  static constexpr bool announced = true;  // by a tail

  std::size_t capacity;  // units of a slot
  __device__ static std::size_t slot_bytes(std::size_t data_bytes) { return data_bytes; }
  __device__ __forceinline__ bool load(uint4& unit, std::byte* slot, std::size_t place, Word, int,
                                       const Waiting&) const {
    unit = reinterpret_cast<const uint4*>(slot)[place];
    return true;
  }
  __device__ __forceinline__ void store(const uint4& unit, std::byte* slot, std::size_t place, Word) const {
    reinterpret_cast<uint4*>(slot)[place] = unit;
  }
};

struct Packets {
  static constexpr int line = 1;
  static constexpr unsigned batch = 1;
  static constexpr bool announced = false;

  std::size_t capacity;  // units of a slot
  __device__ static std::size_t slot_bytes(std::size_t data_bytes) { return 2 * data_bytes; }
  __device__ __forceinline__ bool load(uint4& unit, std::byte* slot, std::size_t place, Word number, int peer,
                                       const Waiting& waiting) const {
    return load_packets(unit, reinterpret_cast<Word*>(slot) + place, capacity, number + 1, peer, waiting);
  }
  __device__ __forceinline__ void store(const uint4& unit, std::byte* slot, std::size_t place, Word number) const {
    store_packets(reinterpret_cast<Word*>(slot) + place, capacity, unit, static_cast<std::uint32_t>(number + 1));
  }
};

}  // namespace ringred::cuda
