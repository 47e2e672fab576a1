// How one element is loaded into an accumulator, combined and stored. Compiled once for each instruction set, so
// everything here sits in an unnamed namespace and calls nothing from the standard library: an inline function that the
// linker shared between two objects could carry AVX-512 into a baseline program.
//
// What is constexpr is used by kernels of csrc/cuda, too: nvcc compiles such functions for the device.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

// IEEE 754 binary16 to binary32. Subnormals go through an integer, so that a thread that flushes denormals sees them.
inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  const std::uint32_t rebias =
      magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;  // 224 << 23 for inf and nan, 112 << 23
  const std::uint32_t normal = (magnitude << 13) + rebias;
  const float tiny = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
  const std::uint32_t bits = magnitude < 0x0400u ? __builtin_bit_cast(std::uint32_t, tiny) : normal;
  return __builtin_bit_cast(float, bits | sign);
}

// binary32 to binary16, round to nearest, ties to even; overflow to infinity; a quiet nan stays a quiet nan.
inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 aligns the last bit of the sum with the last bit of a binary16 subnormal, 2^-24; the FPU rounds.
  const float aligned = __builtin_bit_cast(float, magnitude) + 0.5f;
  const std::uint32_t subnormal = __builtin_bit_cast(std::uint32_t, aligned) - 0x3f000000u;
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<std::uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite));
}

inline float bfloat_to_float(std::uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t float_to_bfloat(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// An element type names what is stored, what is accumulated, and the way between them.
template <class StoredType, class AccumulatorType>
struct Plain {
  using Stored = StoredType;
  using Accumulator = AccumulatorType;
  static constexpr Accumulator load(Stored value) { return static_cast<Accumulator>(value); }
  static constexpr Stored store(Accumulator value) { return static_cast<Stored>(value); }
};

// Sums that wrap as unsigned numbers do, of signed elements.
template <class StoredType>
struct SignedSum {
  using Stored = StoredType;
  using Accumulator = std::uint64_t;
  static constexpr Accumulator load(Stored value) { return static_cast<Accumulator>(static_cast<std::int64_t>(value)); }
  static constexpr Stored store(Accumulator value) { return static_cast<Stored>(static_cast<std::int64_t>(value)); }
};

struct Half {
  using Stored = std::uint16_t;
  using Accumulator = float;
  static float load(Stored value) { return half_to_float(value); }
  static Stored store(float value) { return float_to_half(value); }
};

struct BFloat {
  using Stored = std::uint16_t;
  using Accumulator = float;
  static float load(Stored value) { return bfloat_to_float(value); }
  static Stored store(float value) { return float_to_bfloat(value); }
};

struct Boolean {
  using Stored = std::uint8_t;
  using Accumulator = std::uint8_t;
  static constexpr Accumulator load(Stored value) { return value != 0; }
  static constexpr Stored store(Accumulator value) { return value; }
};

template <class Real>
struct ComplexValue {
  Real real, imaginary;
};

template <class Real>
struct Complex {
  using Stored = ComplexValue<Real>;
  using Accumulator = ComplexValue<Real>;
  static constexpr Accumulator load(Stored value) { return value; }
  static constexpr Stored store(Accumulator value) { return value; }
};

struct Add {
  template <class T>
  static constexpr T apply(T left, T right) {
    return static_cast<T>(left + right);
  }
};

struct Multiply {
  template <class T>
  static constexpr T apply(T left, T right) {
    return static_cast<T>(left * right);
  }
  template <class Real>
  static constexpr ComplexValue<Real> apply(ComplexValue<Real> left, ComplexValue<Real> right) {
    // Written as a sum: of a difference beside a sum GCC 12 makes a fused vfmaddsub, although contraction is off, and
    // instruction sets would differ.
    return {left.real * right.real + -left.imaginary * right.imaginary,
            left.real * right.imaginary + left.imaginary * right.real};
  }
};

// A nan on either side wins: a minimum or maximum must not hide that a gradient is broken.
struct Minimum {
  template <class T>
  static constexpr T apply(T left, T right) {
    return left < right || left != left ? left : right;
  }
};

struct Maximum {
  template <class T>
  static constexpr T apply(T left, T right) {
    return left > right || left != left ? left : right;
  }
};

struct Any {
  static constexpr std::uint8_t apply(std::uint8_t left, std::uint8_t right) { return left | right; }
};

struct All {
  static constexpr std::uint8_t apply(std::uint8_t left, std::uint8_t right) { return left & right; }
};

struct Keep {
  template <class T>
  constexpr T operator()(T value) const {
    return value;
  }
};

template <class T>
struct Divide {
  T divisor;
  constexpr T operator()(T value) const { return static_cast<T>(value / divisor); }
};

// For sums of SignedSum: truncates toward zero.
struct DivideSigned {
  std::int64_t divisor;
  constexpr std::uint64_t operator()(std::uint64_t value) const {
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(value) / divisor);
  }
};

template <class T>
struct Scale {
  T factor;
  constexpr T operator()(T value) const { return static_cast<T>(value * factor); }
};

}  // namespace
