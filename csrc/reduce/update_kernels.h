// The steps of optimizers. Compiled once for each instruction set as part of kernels.cpp; elements.h says why
// everything sits in an unnamed namespace.
//
// Traffic of a call: every array is read and written once. The elements are worked off in blocks that stay in the
// first-level cache; of a block each loop does one operation, so that an option costs one branch for each block and no
// loop has a copy for each choice of options.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/reduce/elements.h"
#include "csrc/reduce/kernels.h"
#include "csrc/reduce/update.h"
#include "csrc/reduce/update_scalars.h"

namespace {

using ringred::Rates;
using ringred::UpdateArrays;

// 1 KiB: larger blocks were slower, because the processor overlaps the loads of one loop with the loops around it only
// while these are short.
template <class Real>
constexpr std::size_t update_block_elements = 1024 / sizeof(Real);

inline float square_root(float value) {
  return __builtin_sqrtf(value);
}
inline double square_root(double value) {
  return __builtin_sqrt(value);
}

// A block of an array: the loops below see plain pointers.
template <class Real>
Real* block_of(void* array, std::size_t start) {
  return static_cast<Real*>(array) + start;
}
template <class Real>
const Real* block_of(const void* array, std::size_t start) {
  return static_cast<const Real*>(array) + start;
}

// As real_average in kernels.cpp, to the same bits.
template <class Real>
void average_block(const void* const* inputs, int input_count, std::size_t start, std::size_t block,
                   std::int64_t divisor, Real* values) {
  const Real* sum = block_of<Real>(inputs[0], start);
  for (int k = 1; k < input_count; ++k) {
    const Real* in = block_of<Real>(inputs[k], start);
#pragma GCC ivdep
    for (std::size_t i = 0; i < block; ++i) values[i] = sum[i] + in[i];
    sum = values;
  }
  const Real value = static_cast<Real>(divisor);
  if ((divisor & (divisor - 1)) == 0) {
    const Real reciprocal = 1 / value;
#pragma GCC ivdep
    for (std::size_t i = 0; i < block; ++i) values[i] = sum[i] * reciprocal;
  } else {
#pragma GCC ivdep
    for (std::size_t i = 0; i < block; ++i) values[i] = sum[i] / value;
  }
}

template <class Real>
void copy_block(const Real* values, void* output, std::size_t start, std::size_t block) {
  __builtin_memcpy(block_of<Real>(output, start), values, block * sizeof(Real));
}

template <class Real>
class Sgd {
 public:
  explicit Sgd(const Rates& rates) : scalars_(rates) {}

  // Overwrites the gradients, writes the first output.
  void step(const UpdateArrays& arrays, std::size_t start, std::size_t block, Real* gradient) const {
    const auto [decay, momentum, share, rate, with_momentum, first, nesterov] = scalars_;
    const Real* parameter = block_of<Real>(arrays.parameter, start);
    if (decay != 0)
      for (std::size_t i = 0; i < block; ++i) gradient[i] += parameter[i] * decay;
    if (with_momentum) {
      Real* buffer = block_of<Real>(arrays.state[0], start);
      if (first)
        for (std::size_t i = 0; i < block; ++i) buffer[i] = gradient[i];
      else
        for (std::size_t i = 0; i < block; ++i) buffer[i] = buffer[i] * momentum + gradient[i] * share;
      if (nesterov)
        for (std::size_t i = 0; i < block; ++i) gradient[i] += buffer[i] * momentum;
      else
        for (std::size_t i = 0; i < block; ++i) gradient[i] = buffer[i];
    }
    Real* output = block_of<Real>(arrays.outputs[0], start);
#pragma GCC ivdep
    for (std::size_t i = 0; i < block; ++i) output[i] = parameter[i] + gradient[i] * rate;
  }

 private:
  SgdScalars<Real> scalars_;
};

template <class Real, bool decoupled>
class Adam {
 public:
  explicit Adam(const Rates& rates) : scalars_(rates, decoupled) {}

  // Overwrites the gradients, writes the first output.
  void step(const UpdateArrays& arrays, std::size_t start, std::size_t block, Real* gradient) const {
    const auto [decay, keep, weight, beta2, share, epsilon, root, size, amsgrad] = scalars_;
    const Real* parameter = block_of<Real>(arrays.parameter, start);
    if (decay != 0)
      for (std::size_t i = 0; i < block; ++i) gradient[i] += parameter[i] * decay;
    Real* mean = block_of<Real>(arrays.state[0], start);
    if (weight < Real{0.5})
      for (std::size_t i = 0; i < block; ++i) mean[i] += weight * (gradient[i] - mean[i]);
    else
      for (std::size_t i = 0; i < block; ++i) mean[i] = gradient[i] + (weight - 1) * (gradient[i] - mean[i]);
    Real* square = block_of<Real>(arrays.state[1], start);
    for (std::size_t i = 0; i < block; ++i) square[i] = square[i] * beta2 + share * gradient[i] * gradient[i];
    if (amsgrad) {
      Real* largest = block_of<Real>(arrays.state[2], start);
#pragma GCC ivdep
      for (std::size_t i = 0; i < block; ++i) largest[i] = Maximum::apply(largest[i], square[i]);
      square = largest;
    }
    Real* output = block_of<Real>(arrays.outputs[0], start);
#pragma GCC ivdep
    for (std::size_t i = 0; i < block; ++i)
      output[i] = parameter[i] * keep + size * mean[i] / (square_root(square[i]) / root + epsilon);
  }

 private:
  AdamScalars<Real> scalars_;
};

template <class Real, class Rule>
void update(const UpdateArrays& arrays, std::size_t count, std::int64_t divisor, double factor, const Rates& rates) {
  constexpr std::size_t most = update_block_elements<Real>;
  const Rule rule(rates);
  const Real scale = static_cast<Real>(rates.maximize ? -factor : factor);
  alignas(64) Real gradient[most];
  for (std::size_t start = 0; start < count; start += most) {
    const std::size_t block = count - start < most ? count - start : most;
    average_block(arrays.gradients, arrays.gradient_count, start, block, divisor, gradient);
    if (arrays.average) copy_block(gradient, arrays.average, start, block);
    if (scale != 1)
      for (std::size_t i = 0; i < block; ++i) gradient[i] *= scale;
    rule.step(arrays, start, block, gradient);
    const Real* output = block_of<Real>(arrays.outputs[0], start);
    for (int k = 1; k < arrays.output_count; ++k) copy_block(output, arrays.outputs[k], start, block);
  }
}

// The number of sums: whole vector registers on every instruction set, enough of them to hide the latency of an
// addition.
constexpr std::size_t lanes = 16;

template <class Real>
double norm(const void* const* inputs, int input_count, void* output, std::size_t count, std::int64_t divisor) {
  constexpr std::size_t most = update_block_elements<Real>;
  static_assert(most % lanes == 0);
  alignas(64) Real values[most];
  alignas(64) double sums[lanes] = {};
  for (std::size_t start = 0; start < count; start += most) {
    const std::size_t block = count - start < most ? count - start : most;
    average_block(inputs, input_count, start, block, divisor, values);
    copy_block(values, output, start, block);
    // Zeros add nothing, to the bit: no sum is a negative zero.
    const std::size_t whole = (block + lanes - 1) / lanes * lanes;
    for (std::size_t i = block; i < whole; ++i) values[i] = 0;
    for (std::size_t i = 0; i < whole; i += lanes)
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        const double value = static_cast<double>(values[i + lane]);
        sums[lane] += value * value;
      }
  }
  for (std::size_t half = lanes / 2; half > 0; half /= 2)
    for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

// Rows: float32, float64. Columns are numbers of Rule.
inline void fill_updates(ringred::KernelTable& table) {
  table.update[0][0] = update<float, Sgd<float>>;
  table.update[0][1] = update<float, Adam<float, false>>;
  table.update[0][2] = update<float, Adam<float, true>>;
  table.update[1][0] = update<double, Sgd<double>>;
  table.update[1][1] = update<double, Adam<double, false>>;
  table.update[1][2] = update<double, Adam<double, true>>;
  table.norm[0] = norm<float>;
  table.norm[1] = norm<double>;
}

}  // namespace
