// The CPU's kernel on a slice of update_reference.h.
#pragma once

#include <cstddef>
#include <vector>

#include "csrc/reduce/update.h"
#include "tests/local/update_reference.h"

namespace ringred::reference {

template <class Real>
inline constexpr DType dtype_of = sizeof(Real) == 4 ? DType::f32 : DType::f64;

inline bool uses_state(const Setting& setting, int k) {
  if (setting.rule == Rule::sgd) return k == 0 && setting.rates.momentum != 0;
  return k < 2 || setting.rates.amsgrad;
}

// The kernel on elements `start` to `end` of a slice.
template <class Real>
void call(const InstructionSet& set, const Setting& setting, Slice<Real>& slice, std::size_t start, std::size_t end,
          Real* average) {
  std::vector<const void*> gradients;
  std::vector<void*> outputs;
  for (const auto& gradient : slice.gradients) gradients.push_back(gradient.data() + start);
  for (auto& output : slice.outputs) outputs.push_back(output.data() + start);
  Array<Real>& parameter = slice.parameter;
  const bool in_place = slice.shape.in_place < outputs.size();
  if (in_place) outputs[slice.shape.in_place] = parameter.data() + start;
  UpdateArrays arrays{.gradients = gradients.data(),
                      .gradient_count = static_cast<int>(gradients.size()),
                      .parameter = parameter.data() + start,
                      .outputs = outputs.data(),
                      .output_count = static_cast<int>(outputs.size()),
                      .state = {},
                      .average = average ? average + start : nullptr};
  for (int k = 0; k < 3; ++k)
    if (uses_state(setting, k)) arrays.state[k] = slice.state[k].data() + start;
  update_kernel(set, dtype_of<Real>, setting.rule)(arrays, end - start, slice.shape.divisor, slice.shape.factor,
                                                   setting.rates);
  if (in_place) slice.outputs[slice.shape.in_place] = parameter;
}

template <class Real>
Slice<Real> called(const InstructionSet& set, const Setting& setting, Slice<Real> slice) {
  call(set, setting, slice, 0, slice.parameter.size(), slice.average.data());
  return slice;
}

}  // namespace ringred::reference
