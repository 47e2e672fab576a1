// One round of a hash: multiply and shift, by the golden ratio. Enough to tell calls apart; nobody attacks it.
#pragma once

#include <cstdint>

namespace ringred {

constexpr std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 32);
}

}  // namespace ringred
