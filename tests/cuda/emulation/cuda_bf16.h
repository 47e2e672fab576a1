// bfloat16: conversions only. As on the device a nan has one form.
#pragma once

#include <cstdint>

#include "csrc/reduce/elements.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  return bfloat_to_float(value.bits);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {value != value ? std::uint16_t{0x7fff} : float_to_bfloat(value)};
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return {bits};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
  return value.bits;
}
