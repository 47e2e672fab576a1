// Scaled conversions: output[i] = to(input[i] * factor), one loop for each pair of element types. Compiled once for
// each instruction set as part of kernels.cpp; elements.h says why everything sits in an unnamed namespace.
//
// Invariant: an element is multiplied once, in fp32 or fp64 by its pair of types, and rounded once to what is stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "csrc/reduce/elements.h"
#include "csrc/reduce/kernels.h"

namespace {

// The nearest float whose last bit is 1, unless a float equals `value`. Rounding that to a half type gives what
// rounding `value` itself gives, because the last bit says that there was a rest; of the nearest float, a value just
// beside a tie would become the tie and round to the wrong side. Subnormal floats and overflow (to the greatest float,
// which every half type rounds to infinity) need no case of their own.
inline float rounded_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  const double have = __builtin_fabs(static_cast<double>(nearest));
  const double want = __builtin_fabs(value);
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, nearest);
  const std::uint32_t away = have<want, back = have> want;  // neither for a nan
  return __builtin_bit_cast(float, bits + (~bits & away) - (~bits & back));
}

// A half type that is scaled in fp64, because the other side of the pair is float64.
template <class Element>
struct Wide {
  using Stored = typename Element::Stored;
  using Accumulator = double;
  static double load(Stored value) { return static_cast<double>(Element::load(value)); }
  static Stored store(double value) { return Element::store(rounded_to_odd(value)); }
};

// Integers scaled in fp64: truncated toward zero, beyond the type its nearest limit, nan is 0.
template <class StoredType>
struct Saturated {
  using Stored = StoredType;
  using Accumulator = double;
  static constexpr Stored least = std::numeric_limits<Stored>::min();
  static constexpr Stored most = std::numeric_limits<Stored>::max();
  static constexpr double bottom = static_cast<double>(least);
  // Of 64 bits `most` rounds up, to the first number that the type cannot hold: no number of fp64 lies between.
  static constexpr double top = static_cast<double>(most);

  static double load(Stored value) { return static_cast<double>(value); }
  static Stored store(double value) {
    const double number = value != value ? 0.0 : value;
    return number >= top ? most : number <= bottom ? least : static_cast<Stored>(number);
  }
};

template <class From, class To>
void scale(const void* input, void* output, std::size_t count, double factor) {
  using Real = typename From::Accumulator;
  const auto* in = static_cast<const typename From::Stored*>(input);
  auto* out = static_cast<typename To::Stored*>(output);
  // Every product with a nan is a nan; which of two nans it is would depend on the order that the compiler gives the
  // operands, and so on the instruction set.
  if (factor != factor) {
    const auto nan = To::store(static_cast<typename To::Accumulator>(__builtin_nan("")));
    for (std::size_t i = 0; i < count; ++i) out[i] = nan;
    return;
  }
  const Real by = static_cast<Real>(factor);
  // The output equals the input or does not overlap it, so there is no dependency between iterations.
#pragma GCC ivdep
  for (std::size_t i = 0; i < count; ++i) out[i] = To::store(static_cast<Real>(From::load(in[i]) * by));
}

template <std::size_t element_size>
void copy(const void* input, void* output, std::size_t count, double) {
  if (input != output && count > 0) __builtin_memcpy(output, input, count * element_size);
}

template <class Element>
void scale_or_copy(const void* input, void* output, std::size_t count, double factor) {
  if (factor == 1)
    copy<sizeof(typename Element::Stored)>(input, output, count, factor);
  else
    scale<Element, Element>(input, output, count, factor);
}

// Real and imaginary parts are scaled alike.
template <class Element>
void scale_or_copy_pairs(const void* input, void* output, std::size_t count, double factor) {
  scale_or_copy<Element>(input, output, 2 * count, factor);
}

// Rows and columns are numbers of DType.
inline void fill_scales(ringred::KernelTable& table) {
  auto& scales = table.scale;
  scales[0][0] = scale_or_copy<Saturated<std::int8_t>>;
  scales[1][1] = scale_or_copy<Saturated<std::uint8_t>>;
  scales[2][2] = scale_or_copy<Saturated<std::int16_t>>;
  scales[3][3] = scale_or_copy<Saturated<std::uint16_t>>;
  scales[4][4] = scale_or_copy<Saturated<std::int32_t>>;
  scales[5][5] = scale_or_copy<Saturated<std::uint32_t>>;
  scales[6][6] = scale_or_copy<Saturated<std::int64_t>>;
  scales[7][7] = scale_or_copy<Saturated<std::uint64_t>>;

  using Float = Plain<float, float>;
  using Double = Plain<double, double>;
  using WideFloat = Plain<float, double>;
  scales[8][8] = scale_or_copy<Half>;
  scales[8][9] = scale<Half, BFloat>;
  scales[8][10] = scale<Half, Float>;
  scales[8][11] = scale<Wide<Half>, Double>;
  scales[9][8] = scale<BFloat, Half>;
  scales[9][9] = scale_or_copy<BFloat>;
  scales[9][10] = scale<BFloat, Float>;
  scales[9][11] = scale<Wide<BFloat>, Double>;
  scales[10][8] = scale<Float, Half>;
  scales[10][9] = scale<Float, BFloat>;
  scales[10][10] = scale_or_copy<Float>;
  scales[10][11] = scale<WideFloat, Double>;
  scales[11][8] = scale<Double, Wide<Half>>;
  scales[11][9] = scale<Double, Wide<BFloat>>;
  scales[11][10] = scale<Double, WideFloat>;
  scales[11][11] = scale_or_copy<Double>;

  scales[12][12] = scale_or_copy_pairs<Float>;
  scales[13][13] = scale_or_copy_pairs<Double>;
  scales[14][14] = copy<1>;
}

}  // namespace
