// Whole-number division that rounds up.
#pragma once

#include <cstddef>

namespace ringred {

constexpr std::size_t divide_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit;
}
constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return divide_up(value, unit) * unit;
}

}  // namespace ringred
