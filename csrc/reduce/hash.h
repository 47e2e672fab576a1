// Comparing replicas: a hash of the bytes tells whether two ranks hold the same, a count of elements how far they
// differ.
//
// Invariant: the hash depends on the bytes and their order alone: not on the instruction set, nor on the alignment.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringred {

struct InstructionSet;

// One pass at the bandwidth of memory. Against accidents, not against an adversary: two buffers that differ have the
// same hash with a probability of about 2^-64. The values may change between versions: send them, do not store them.
//
// `set` is not read today: the products are scalar, which every set has, and keep up with memory. It is here as for the
// other kernels, so that a set may get a loop of its own.
std::uint64_t hash_bytes(const InstructionSet& set, const void* data, std::size_t bytes);

// The number of elements whose bytes differ: 0.0 and -0.0 do, a nan and its copy do not.
std::size_t count_different(const void* a, const void* b, std::size_t count, std::size_t element_size);

}  // namespace ringred
