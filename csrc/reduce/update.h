// The step of an optimizer on a slice of the parameters: one pass over memory that sums the parts of the gradient and
// applies SGD, Adam or AdamW.
//
// Invariant: the result depends on the inputs, their order and the rates alone, not on the instruction set, the
// alignment, the number of elements in a call or the number of outputs. Only the payload of a nan may differ.
//
// A step does the operations of torch's optimizers for single tensors in their order, with scalars computed in fp64 and
// rounded once to the element type, but never a fused multiply-add, of which torch makes some. From the same state, one
// step differs from torch's by a few eps of the sum of the magnitudes that are added: for the parameter |parameter| +
// |change|, the change computed from magnitudes too. Measured over 50 steps of every rule and option, in float32 and
// float64: at most 2 eps in parameters, momentum buffers and exp_avg, 4 eps in exp_avg_sq and its maximum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/base/types.h"

namespace ringred {

struct InstructionSet;

enum class Rule : std::uint8_t { sgd, adam, adamw };

// What one step does to the parameters of one group: torch's hyperparameters, resolved. A rule does not read the rates
// of other rules.
struct Rates {
  double learning_rate, weight_decay;
  double momentum, dampening;    // sgd
  double beta1, beta2, epsilon;  // adam, adamw
  double step;                   // adam, adamw: the number of this step, from 1
  bool nesterov;                 // sgd
  bool maximize;
  bool amsgrad;  // adam, adamw
  bool first;    // sgd with momentum: the first step, in which the buffer becomes the gradient and is not read
};

// The arrays of one call, all of one dtype and one number of elements. An output may be the parameter and the average
// may be one of the gradients, at the same address; no other two arrays overlap.
struct UpdateArrays {
  const void* const* gradients;  // parts of the sum, in this order
  int gradient_count;
  const void* parameter;
  void* const* outputs;  // the new parameter goes into all of them
  int output_count;
  void* state[3];  // sgd: momentum buffer; adam, adamw: exp_avg, exp_avg_sq, max_exp_avg_sq; null where not in use
  void* average;   // where the average of the gradients goes, before `factor`; null: nowhere
};

// The gradient is the sum of the parts, divided by `divisor` as Op::average divides (reduce.h, to the same bits),
// multiplied by `factor` and negated for `maximize`.
using UpdateKernel = void (*)(const UpdateArrays& arrays, std::size_t count, std::int64_t divisor, double factor,
                              const Rates& rates);

// Throws a usage error unless `dtype` is float32 or float64.
UpdateKernel update_kernel(const InstructionSet& set, DType dtype, Rule rule);

// Stores the average of the parts and returns the sum of its squares, added up in fp64: element i to sum i mod 16, the
// sums in pairs at the end. The result is the same on every instruction set; of a slice in two calls it would be
// rounded otherwise. The output may be one of the inputs, at the same address; it may not overlap one in any other way.
using NormKernel = double (*)(const void* const* inputs, int input_count, void* output, std::size_t count,
                              std::int64_t divisor);

// Throws a usage error unless `dtype` is float32 or float64.
NormKernel norm_kernel(const InstructionSet& set, DType dtype);

}  // namespace ringred
