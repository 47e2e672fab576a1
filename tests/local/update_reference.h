// One optimizer step of one element, by the definition of the rules, on any kind of number: float and double give the
// bits that a kernel has to give, Bounded how far they may be off exact arithmetic. And what the tests run steps on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "csrc/reduce/update.h"

namespace ringred::reference {

// A number and how far arithmetic in Real may be off it: operations carry the errors on and add their own rounding.
template <class Real>
struct Bounded {
  static constexpr long double unit = std::numeric_limits<Real>::epsilon() / 2;
  long double value = 0, error = 0;

  static Bounded rounded(long double value, long double error) {
    return {value, error + unit * (std::fabs(value) + error)};
  }
  Bounded operator-() const { return {-value, error}; }
  friend Bounded operator+(Bounded a, Bounded b) { return rounded(a.value + b.value, a.error + b.error); }
  friend Bounded operator-(Bounded a, Bounded b) { return a + -b; }
  friend Bounded operator*(Bounded a, Bounded b) {
    return rounded(a.value * b.value, std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error);
  }
  friend Bounded operator/(Bounded a, Bounded b) {
    const long double quotient = a.value / b.value;
    return rounded(quotient, (a.error + std::fabs(quotient) * b.error) / (std::fabs(b.value) - b.error));
  }
  friend bool operator>(Bounded a, Bounded b) { return a.value > b.value; }
};

template <class Real>
Bounded<Real> root_of(Bounded<Real> number) {
  const long double root = std::sqrt(number.value);
  return Bounded<Real>::rounded(root, root - std::sqrt(std::max(number.value - number.error, 0.0L)));
}
template <class Real>
Real root_of(Real number) {
  return std::sqrt(number);
}

template <class Number>
Number scalar(double value) {
  if constexpr (std::is_floating_point_v<Number>)
    return static_cast<Number>(value);
  else
    return Number::rounded(value, 0);
}

template <class Number>
Number exact(double value) {
  if constexpr (std::is_floating_point_v<Number>)
    return static_cast<Number>(value);
  else
    return {value, 0};
}

template <class Number>
Number greatest(Number a, Number b) {
  if constexpr (std::is_floating_point_v<Number>)
    if (std::isnan(a) || std::isnan(b)) return a + b;
  return a > b ? a : b;
}

struct Setting {
  Rule rule;
  Rates rates;
};

// One element, by the definition of the rule.
template <class Number>
void step(const Setting& setting, double factor, Number gradient, Number& parameter, Number* state) {
  const Rates& rates = setting.rates;
  const auto number = scalar<Number>;
  if (factor != 1) gradient = gradient * number(factor);
  if (rates.maximize) gradient = -gradient;
  if (rates.weight_decay != 0 && setting.rule != Rule::adamw)
    gradient = gradient + parameter * number(rates.weight_decay);
  if (setting.rule == Rule::sgd) {
    if (rates.momentum != 0) {
      state[0] = rates.first ? gradient : state[0] * number(rates.momentum) + gradient * number(1 - rates.dampening);
      gradient = rates.nesterov ? gradient + state[0] * number(rates.momentum) : state[0];
    }
    parameter = parameter + gradient * number(-rates.learning_rate);
    return;
  }
  if (setting.rule == Rule::adamw && rates.weight_decay != 0)
    parameter = parameter * number(1 - rates.learning_rate * rates.weight_decay);
  const Number weight = number(1 - rates.beta1);
  if (1 - rates.beta1 < 0.5)
    state[0] = state[0] + weight * (gradient - state[0]);
  else
    state[0] = gradient + (weight - exact<Number>(1)) * (gradient - state[0]);
  state[1] = state[1] * number(rates.beta2) + number(1 - rates.beta2) * gradient * gradient;
  if (rates.amsgrad) state[2] = greatest(state[2], state[1]);
  const Number square = rates.amsgrad ? state[2] : state[1];
  const Number root = number(std::sqrt(1 - std::pow(rates.beta2, rates.step)));
  const Number size = number(-rates.learning_rate / (1 - std::pow(rates.beta1, rates.step)));
  parameter = parameter + size * state[0] / (root_of(square) / root + number(rates.epsilon));
}

// Every choice of options that changes what is computed.
inline std::vector<Setting> all_settings() {
  std::vector<Setting> settings;
  for (const double decay : {0.0, 0.05})
    for (const bool maximize : {false, true}) {
      Rates rates{};
      rates.learning_rate = 0.01, rates.weight_decay = decay, rates.maximize = maximize;
      for (const double momentum : {0.0, 0.9})
        for (const double dampening : {0.0, 0.3})
          for (const bool nesterov : {false, true})
            for (const bool first : {false, true}) {
              rates.momentum = momentum, rates.dampening = dampening, rates.nesterov = nesterov, rates.first = first;
              settings.push_back({Rule::sgd, rates});
            }
      rates.beta2 = 0.99, rates.epsilon = 1e-6;
      for (const Rule rule : {Rule::adam, Rule::adamw})
        for (const double beta1 : {0.9, 0.5, 0.2})
          for (const bool amsgrad : {false, true}) {
            rates.beta1 = beta1, rates.amsgrad = amsgrad, rates.step = 1 + static_cast<double>(settings.size() % 9);
            settings.push_back({rule, rates});
          }
    }
  return settings;
}

template <class Real>
using Array = std::vector<Real>;

template <class Real>
bool same(const Array<Real>& left, const Array<Real>& right) {
  return std::ranges::equal(left, right, [](Real a, Real b) {
    return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
  });
}

struct Shape {
  std::size_t parts, outputs;
  std::size_t in_place;  // the number of the output that is the parameter; none where there is no such output
  std::int64_t divisor;
  double factor;
};
inline constexpr Shape shapes[] = {
    {1, 1, 9, 1, 1}, {2, 2, 0, 2, 1}, {3, 4, 3, 3, 0.37}, {4, 1, 0, 4, 0.37}, {7, 2, 9, 7, 1}};

// What a step reads, and what it leaves.
template <class Real>
struct Slice {
  Shape shape;
  std::vector<Array<Real>> gradients, outputs;
  Array<Real> parameter, state[3], average;

  bool operator==(const Slice& other) const {
    bool equal = same(parameter, other.parameter) && same(average, other.average);
    for (std::size_t k = 0; k < outputs.size(); ++k) equal = equal && same(outputs[k], other.outputs[k]);
    for (int k = 0; k < 3; ++k) equal = equal && same(state[k], other.state[k]);
    return equal;
  }
};

template <class Real>
Slice<Real> slice_of(std::size_t count, const Shape& shape) {
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  const auto draw = [&](double scale) { return static_cast<Real>(scale * normal(random)); };
  Slice<Real> slice;
  slice.shape = shape;
  slice.gradients.assign(shape.parts, Array<Real>(count));
  slice.outputs.assign(shape.outputs, Array<Real>(count));
  slice.average.resize(count);
  for (auto& gradient : slice.gradients) std::ranges::generate(gradient, [&] { return draw(1); });
  slice.parameter.resize(count);
  std::ranges::generate(slice.parameter, [&] { return draw(1); });
  for (auto& state : slice.state) state.resize(count);
  std::ranges::generate(slice.state[0], [&] { return draw(0.5); });
  for (const std::size_t k : {1u, 2u}) std::ranges::generate(slice.state[k], [&] { return std::fabs(draw(0.3)); });
  return slice;
}

}  // namespace ringred::reference
