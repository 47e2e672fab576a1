// The scalars of an optimizer's step: computed from the rates in fp64, rounded once to the element type. The CPU's
// loops and the device's kernel take the same.
//
// elements.h says why everything sits in an unnamed namespace.
#pragma once

#include "csrc/reduce/update.h"

namespace {

template <class Real>
struct SgdScalars {
  Real decay, momentum, share, rate;
  bool with_momentum, first, nesterov;

  explicit SgdScalars(const ringred::Rates& rates)
      : decay(static_cast<Real>(rates.weight_decay)),
        momentum(static_cast<Real>(rates.momentum)),
        share(static_cast<Real>(1 - rates.dampening)),
        rate(static_cast<Real>(-rates.learning_rate)),
        with_momentum(rates.momentum != 0),
        first(rates.first),
        nesterov(rates.nesterov) {}
};

// Adam adds the decay to the gradient, AdamW scales the parameter (by 1 where there is none, which is exact).
template <class Real>
struct AdamScalars {
  Real decay, keep, weight, beta2, share, epsilon, root, size;
  bool amsgrad;

  AdamScalars(const ringred::Rates& rates, bool decoupled)
      : decay(decoupled ? 0 : static_cast<Real>(rates.weight_decay)),
        keep(decoupled ? static_cast<Real>(1 - rates.learning_rate * rates.weight_decay) : 1),
        weight(static_cast<Real>(1 - rates.beta1)),
        beta2(static_cast<Real>(rates.beta2)),
        share(static_cast<Real>(1 - rates.beta2)),
        epsilon(static_cast<Real>(rates.epsilon)),
        root(static_cast<Real>(__builtin_sqrt(1 - __builtin_pow(rates.beta2, rates.step)))),
        size(static_cast<Real>(-rates.learning_rate / (1 - __builtin_pow(rates.beta1, rates.step)))),
        amsgrad(rates.amsgrad) {}
};

}  // namespace
