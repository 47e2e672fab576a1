// What kernels are compared with: random elements of a dtype as bytes, and equality to the bit but for the payload of a
// nan.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "csrc/base/types.h"

namespace ringred::cuda {

using Bytes = std::vector<std::byte>;

// A bit pattern is a nan where its magnitude is above that of infinity.
inline bool is_nan(const std::byte* element, DType dtype) {
  std::uint64_t bits = 0;
  const std::size_t size = info(dtype).size;
  std::memcpy(&bits, element, size);
  const std::uint64_t infinity = dtype == DType::f16    ? 0x7c00u
                                 : dtype == DType::bf16 ? 0x7f80u
                                 : dtype == DType::f32  ? 0x7f800000u
                                                        : 0x7ff0000000000000u;
  return (bits & ~(std::uint64_t{1} << (8 * size - 1))) > infinity;
}

// The number of the first element that differs; the count of elements if none does. Complex numbers as their parts.
inline std::size_t first_difference(const Bytes& left, const Bytes& right, DType dtype) {
  if (dtype == DType::c64) dtype = DType::f32;
  if (dtype == DType::c128) dtype = DType::f64;
  const std::size_t size = info(dtype).size, count = left.size() / size;
  const bool has_nan = info(dtype).type_class == TypeClass::half || info(dtype).type_class == TypeClass::real;
  for (std::size_t i = 0; i < count; ++i) {
    const std::byte *a = &left[i * size], *b = &right[i * size];
    if (std::memcmp(a, b, size) != 0 && !(has_nan && is_nan(a, dtype) && is_nan(b, dtype))) return i;
  }
  return count;
}

inline bool same(const Bytes& left, const Bytes& right, DType dtype) {
  return left.size() == right.size() && first_difference(left, right, dtype) >= left.size() / info(dtype).size;
}

// Numbers of all magnitudes, and every tenth bits at random: nan, infinity, subnormal numbers.
template <class Real>
void draw_reals(Bytes& bytes, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> exponent(-6, 6);
  for (std::size_t i = 0; i + sizeof(Real) <= bytes.size(); i += sizeof(Real)) {
    const Real value = static_cast<Real>(std::ldexp(normal(random), exponent(random)));
    if (random() % 10 != 0) std::memcpy(&bytes[i], &value, sizeof value);
  }
}

// Zeros of both signs, of which a minimum or a sum may give either.
inline void draw_zeros(Bytes& bytes, std::size_t size, std::mt19937_64& random) {
  for (std::size_t end = size; end <= bytes.size(); end += size)
    if (random() % 8 == 0) {
      std::memset(&bytes[end - size], 0, size);
      bytes[end - 1] = std::byte{static_cast<unsigned char>(random() % 2 * 0x80)};
    }
}

inline Bytes random_elements(std::size_t count, DType dtype, unsigned seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(count * info(dtype).size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  if (dtype == DType::f32 || dtype == DType::c64) draw_reals<float>(bytes, random);
  if (dtype == DType::f64 || dtype == DType::c128) draw_reals<double>(bytes, random);
  const TypeClass kind = info(dtype).type_class;
  if (kind == TypeClass::half || kind == TypeClass::real) draw_zeros(bytes, info(dtype).size, random);
  if (dtype == DType::boolean)
    for (std::byte& byte : bytes) byte &= std::byte{1};
  return bytes;
}

}  // namespace ringred::cuda
