#include <cmath>
#include <string>

#include "csrc/base/error.h"
#include "csrc/cuda/launch.h"
#include "csrc/cuda/reduce.cuh"
#include "csrc/cuda/update.h"
#include "csrc/reduce/update_scalars.h"

namespace ringred::cuda {
namespace {

// What a thread has in registers: its elements of the parameter and of each array of state.
template <class Real, unsigned wide>
struct Held {
  Vector<Real, wide> gradient, parameter, state[3];
};

template <class Real>
struct SgdStep {
  SgdScalars<Real> rates;

  __host__ __device__ bool reads(int array) const { return array == 0 && rates.with_momentum && !rates.first; }
  __host__ __device__ bool writes(int array) const { return array == 0 && rates.with_momentum; }

  __device__ Real operator()(Real gradient, Real parameter, Real& buffer, Real&, Real&) const {
    if (rates.decay != 0) gradient += parameter * rates.decay;
    if (rates.with_momentum) {
      buffer = rates.first ? gradient : buffer * rates.momentum + gradient * rates.share;
      gradient = rates.nesterov ? gradient + buffer * rates.momentum : buffer;
    }
    return parameter + gradient * rates.rate;
  }
};

template <class Real>
struct AdamStep {
  AdamScalars<Real> rates;

  __host__ __device__ bool reads(int array) const { return array < 2 || rates.amsgrad; }
  __host__ __device__ bool writes(int array) const { return reads(array); }

  __device__ Real operator()(Real gradient, Real parameter, Real& mean, Real& square, Real& largest) const {
    if (rates.decay != 0) gradient += parameter * rates.decay;
    if (rates.weight < Real{0.5})
      mean += rates.weight * (gradient - mean);
    else
      mean = gradient + (rates.weight - 1) * (gradient - mean);
    square = square * rates.beta2 + rates.share * gradient * gradient;
    if (rates.amsgrad) largest = Maximum::apply(largest, square);
    const Real root = std::sqrt(rates.amsgrad ? largest : square);
    return parameter * rates.keep + rates.size * mean / (root / rates.root + rates.epsilon);
  }
};

// The sum of the parts, in their order.
template <class Real, unsigned wide>
__device__ __forceinline__ void add_parts(const UpdateSlice& slice, std::size_t start, Vector<Real, wide>& sum) {
  const auto parts = static_cast<unsigned>(slice.gradient_count);
  constexpr unsigned ahead = 2;  // beside the loads of the parameter and the state
  for (unsigned first = 1; first < parts; first += ahead) {
    Vector<Real, wide> loaded[ahead];
#pragma unroll
    for (unsigned k = 0; k < ahead; ++k)
      if (first + k < parts)
        loaded[k] = vector_at<Real, wide>(static_cast<const Real*>(slice.gradients[first + k]) + start);
#pragma unroll
    for (unsigned k = 0; k < ahead; ++k)
      if (first + k < parts)
#pragma unroll
        for (unsigned i = 0; i < wide; ++i) sum.element[i] += loaded[k].element[i];
  }
}

// All loads that do not depend on one another come first.
template <class Real, unsigned wide, class Step>
__device__ __forceinline__ void update_at(const UpdateSlice& slice, std::size_t start, Step step,
                                          FinishReal<Real> average, Real scale) {
  Held<Real, wide> held{};
  held.gradient = vector_at<Real, wide>(static_cast<const Real*>(slice.gradients[0]) + start);
  held.parameter = vector_at<Real, wide>(static_cast<const Real*>(slice.parameter) + start);
#pragma unroll
  for (int k = 0; k < 3; ++k)
    if (step.reads(k)) held.state[k] = vector_at<Real, wide>(static_cast<const Real*>(slice.state[k]) + start);
  add_parts<Real, wide>(slice, start, held.gradient);
#pragma unroll
  for (unsigned i = 0; i < wide; ++i) held.gradient.element[i] = average(held.gradient.element[i]);
  if (slice.average != nullptr) store_at(static_cast<Real*>(slice.average) + start, held.gradient);
#pragma unroll
  for (unsigned i = 0; i < wide; ++i) {
    const Real gradient = scale != 1 ? held.gradient.element[i] * scale : held.gradient.element[i];
    held.parameter.element[i] = step(gradient, held.parameter.element[i], held.state[0].element[i],
                                     held.state[1].element[i], held.state[2].element[i]);
  }
#pragma unroll
  for (int k = 0; k < 3; ++k)
    if (step.writes(k)) store_at(static_cast<Real*>(slice.state[k]) + start, held.state[k]);
  for (int k = 0; k < slice.output_count; ++k) store_at(static_cast<Real*>(slice.outputs[k]) + start, held.parameter);
}

template <class Real, class Step>
struct UpdateBody {
  const UpdateSlice& slice;
  Step step;
  FinishReal<Real> average;
  Real scale;
  template <unsigned wide>
  __device__ __forceinline__ void at(std::size_t start) const {
    update_at<Real, wide>(slice, start, step, average, scale);
  }
};

template <class Real, class Step>
__global__ void __launch_bounds__(256, 4) update_slice(const __grid_constant__ UpdateSlice slice, Stretch stretch,
                                                       Step step, FinishReal<Real> average, Real scale) {
  stretch.walk<vector_elements<Real>>(UpdateBody<Real, Step>{slice, step, average, scale});
}

struct UpdateCall {
  const UpdateSlice& slice;
  std::size_t count;
  Rule rule;
  const Rates& rates;
  std::int64_t divisor;
  double factor;
  cudaStream_t stream;
};

template <class Step>
void check_arrays(const UpdateSlice& slice, DType dtype, Step step) {
  const int gradients = slice.gradient_count, outputs = slice.output_count;
  if (gradients < 1 || gradients > most_arrays || outputs < 1 || outputs > most_arrays)
    fail_usage("A step has 1 to " + std::to_string(most_arrays) +
               " parts of the gradient and as many outputs at most: it has " + std::to_string(gradients) + " and " +
               std::to_string(outputs) + ". Add up groups of the parts first.");
  for (int k = 0; k < gradients; ++k) check_array(slice.gradients[k], dtype, "gradient", k);
  for (int k = 0; k < outputs; ++k) check_array(slice.outputs[k], dtype, "output", k);
  for (int k = 0; k < 3; ++k)
    if (step.writes(k)) check_array(slice.state[k], dtype, "state", k);
  check_array(slice.parameter, dtype, "parameter", 0);
  if (slice.average != nullptr) check_array(slice.average, dtype, "average", 0);
}

template <class Step>
Alignment alignment_of(const UpdateSlice& slice, Step step) {
  Alignment alignment;
  for (int k = 0; k < slice.gradient_count; ++k) alignment.add(slice.gradients[k]);
  for (int k = 0; k < slice.output_count; ++k) alignment.add(slice.outputs[k]);
  for (int k = 0; k < 3; ++k)
    if (step.writes(k)) alignment.add(slice.state[k]);
  alignment.add(slice.parameter);
  if (slice.average != nullptr) alignment.add(slice.average);
  return alignment;
}

template <class Real, class Step>
void start(const UpdateCall& call, DType dtype, Step step) {
  check_arrays(call.slice, dtype, step);
  const Stretch stretch = alignment_of(call.slice, step).template stretch<Real>(call.count);
  const Real scale = static_cast<Real>(call.rates.maximize ? -call.factor : call.factor);
  launch("of an optimizer's step", update_slice<Real, Step>, strided_grid(stretch.items()), call.stream, call.slice,
         stretch, step, FinishReal<Real>::average(call.divisor), scale);
}

template <class Real>
void start_rule(const UpdateCall& call, DType dtype) {
  if (call.rule == Rule::sgd) return start<Real>(call, dtype, SgdStep<Real>{SgdScalars<Real>(call.rates)});
  start<Real>(call, dtype, AdamStep<Real>{AdamScalars<Real>(call.rates, call.rule == Rule::adamw)});
}

}  // namespace

void update(const UpdateSlice& slice, std::size_t count, DType dtype, Rule rule, const Rates& rates,
            std::int64_t divisor, double factor, cudaStream_t stream) {
  if (dtype != DType::f32 && dtype != DType::f64)
    fail_usage("Fused optimizer steps take float32 or float64: the dtype is " + std::string(info(dtype).name) +
               ". Convert the parameters, or step with torch's optimizer.");
  if (divisor < 1)
    fail_usage("The sum is divided by the number of ranks, 1 or more: the divisor is " + std::to_string(divisor) + ".");
  if (count == 0) return;
  const UpdateCall call{slice, count, rule, rates, divisor, factor, stream};
  if (dtype == DType::f32) return start_rule<float>(call, dtype);
  start_rule<double>(call, dtype);
}

}  // namespace ringred::cuda
