// What virtual ranks bring into a collective, and what must come out: the same bits on all ranks, close to a float64
// reference by a bound that follows from the roundings.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "csrc/base/types.h"
#include "tests/check.h"

namespace ringred::cuda {

// `precision`: bits of the significand with the leading one; 0: exact.
template <class T>
struct Kind;
template <>
struct Kind<float> {
  static constexpr DType dtype = DType::f32;
  static constexpr int precision = 24;
  static float from(double value) { return static_cast<float>(value); }
  static double to(float value) { return value; }
};
template <>
struct Kind<double> {
  static constexpr DType dtype = DType::f64;
  static constexpr int precision = 53;
  static double from(double value) { return value; }
  static double to(double value) { return value; }
};
template <>
struct Kind<__half> {
  static constexpr DType dtype = DType::f16;
  static constexpr int precision = 11;
  static __half from(double value) { return __float2half_rn(static_cast<float>(value)); }
  static double to(__half value) { return __half2float(value); }
};
template <>
struct Kind<__nv_bfloat16> {
  static constexpr DType dtype = DType::bf16;
  static constexpr int precision = 8;
  static __nv_bfloat16 from(double value) { return __float2bfloat16_rn(static_cast<float>(value)); }
  static double to(__nv_bfloat16 value) { return __bfloat162float(value); }
};
template <>
struct Kind<std::int32_t> {
  static constexpr DType dtype = DType::i32;
  static constexpr int precision = 0;
  static std::int32_t from(double value) { return static_cast<std::int32_t>(value); }
  static double to(std::int32_t value) { return value; }
};
template <>
struct Kind<std::int64_t> {
  static constexpr DType dtype = DType::i64;
  static constexpr int precision = 0;
  static std::int64_t from(double value) { return static_cast<std::int64_t>(value); }
  static double to(std::int64_t value) { return static_cast<double>(value); }
};

template <class T>
using Values = std::vector<std::vector<T>>;  // by rank

// Products are of powers of two, which are exact in every order; the rest takes all bits that the type has.
template <class T>
Values<T> make_values(int size, std::size_t count, Op op, unsigned seed) {
  std::minstd_rand random(seed * 2654435761u + 1);
  random.discard(2);
  Values<T> values(static_cast<std::size_t>(size));
  for (std::vector<T>& rank : values)
    for (std::size_t i = 0; i < count; ++i) {
      const double drawn = static_cast<double>(random() % 20001) - 10000;
      const double real = Kind<T>::precision > 0 ? drawn / 1024 : drawn;
      const double power = (drawn < 0 ? -1 : 1) * (random() % 2 == 0 ? 1.0 : 2.0);
      rank.push_back(Kind<T>::from(op == Op::product ? power : real));
    }
  return values;
}

inline double reference(Op op, const std::vector<double>& inputs) {
  double result = inputs[0];
  for (std::size_t i = 1; i < inputs.size(); ++i)
    result = op == Op::min       ? std::min(result, inputs[i])
             : op == Op::max     ? std::max(result, inputs[i])
             : op == Op::product ? result * inputs[i]
                                 : result + inputs[i];
  return op == Op::average ? result / static_cast<double>(inputs.size()) : result;
}

// Each of `roundings` adds, at most, the spacing at the largest partial sum, which is not beyond the sum of magnitudes;
// the accumulator of halves rounds as well, to 2^-24; one more for the reference's own.
template <class T>
double bound(Op op, const std::vector<double>& inputs, int roundings) {
  if (Kind<T>::precision == 0) return op == Op::average ? 1 : 0;
  if (op == Op::min || op == Op::max || op == Op::product) return 0;
  double magnitudes = 0;
  for (double input : inputs) magnitudes += std::abs(input);
  if (op == Op::average) magnitudes /= static_cast<double>(inputs.size());
  const double unit = std::ldexp(1, -Kind<T>::precision) + (Kind<T>::precision < 24 ? std::ldexp(1, -24) : 0);
  return 1.01 * (roundings + 1 + (op == Op::average ? 1 : 0)) * unit * magnitudes + std::ldexp(1, -25);
}

template <class T>
void check_results(const Values<T>& inputs, const Values<T>& results, Op op, int roundings) {
  for (std::size_t i = 0; i < inputs[0].size(); ++i) {
    std::vector<double> one;
    for (const std::vector<T>& rank : inputs) one.push_back(Kind<T>::to(rank[i]));
    const double expected = reference(op, one), limit = bound<T>(op, one, roundings);
    for (const std::vector<T>& result : results)
      if (std::memcmp(&result[i], &results[0][i], sizeof(T)) != 0)
        return CHECK_EQ(Kind<T>::to(result[i]), Kind<T>::to(results[0][i]));
    const double result = Kind<T>::to(results[0][i]);
    if (!(std::abs(result - expected) <= limit)) return CHECK_EQ(result, expected);
  }
}

}  // namespace ringred::cuda
