// binary16: conversions only. As on the device a nan has one form.
#pragma once

#include <cstdint>

#include "csrc/reduce/elements.h"

struct __half {
  std::uint16_t bits;
};

inline float __half2float(__half value) {
  return half_to_float(value.bits);
}
inline __half __float2half_rn(float value) {
  return {value != value ? std::uint16_t{0x7fff} : float_to_half(value)};
}
inline __half __ushort_as_half(unsigned short bits) {
  return {bits};
}
inline unsigned short __half_as_ushort(__half value) {
  return value.bits;
}
