// The arithmetic of rank numbers that several algorithms share.
#pragma once

#include <bit>

namespace ringred {

// Never negative, unlike %.
constexpr int mod(int value, int modulus) {
  return ((value % modulus) + modulus) % modulus;
}

// The greatest power of two that is not above `value`; value > 0.
constexpr int power_of_two_within(int value) {
  return static_cast<int>(std::bit_floor(static_cast<unsigned>(value)));
}

// The number of doublings that bring 1 to `value` or beyond.
constexpr int ceil_log2(int value) {
  return static_cast<int>(std::bit_width(static_cast<unsigned>(value - 1)));
}

}  // namespace ringred
