#include <string>

#include "csrc/base/error.h"
#include "csrc/cuda/reduce.h"
#include "csrc/cuda/reduce_start.cuh"
#include "csrc/reduce/check_operator.h"

namespace ringred::cuda {
namespace {

template <class Element>
void reduce_real(const ReduceCall& call) {
  using Finish = FinishReal<typename Element::Accumulator>;
  if (call.op == Op::min || call.op == Op::max) return start_extreme<Element>(call);
  const Finish finish = call.op == Op::average ? Finish::average(call.divisor) : Finish{};
  start<Element>(call, Arithmetic{call.op == Op::product}, finish);
}

// Sums and averages treat real and imaginary parts alike.
template <class Real>
void reduce_complex(ReduceCall call) {
  if (call.op == Op::product) return start<Complex<Real>>(call, Product{}, Keep{});
  call.count *= 2;
  reduce_real<Plain<Real, Real>>(call);
}

void reduce_boolean(const ReduceCall& call) {
  start<Boolean>(call, Logical{call.op == Op::min || call.op == Op::product}, Keep{});
}

void check_arrays(const ReduceArrays& arrays, DType dtype) {
  if (arrays.input_count < 1 || arrays.input_count > most_arrays || arrays.output_count < 1 ||
      arrays.output_count > most_arrays)
    fail_usage("A reduction has 1 to " + std::to_string(most_arrays) + " inputs and as many outputs at most: it has " +
               std::to_string(arrays.input_count) + " and " + std::to_string(arrays.output_count) +
               ". Reduce groups of the inputs first.");
  for (int k = 0; k < arrays.input_count; ++k) check_array(arrays.inputs[k], dtype, "input", k);
  for (int k = 0; k < arrays.output_count; ++k) check_array(arrays.outputs[k], dtype, "output", k);
}

}  // namespace

void reduce(const ReduceArrays& arrays, std::size_t count, DType dtype, Op op, std::int64_t divisor,
            cudaStream_t stream) {
  check_operator(dtype, op);
  if (op == Op::average && divisor < 1)
    fail_usage("An average is divided by the number of ranks, 1 or more: the divisor is " + std::to_string(divisor) +
               ".");
  if (count == 0) return;
  check_arrays(arrays, dtype);
  const ReduceCall call{arrays, count, op, divisor, stream};
  switch (dtype) {
    case DType::f16:
      return reduce_real<HalfElement>(call);
    case DType::bf16:
      return reduce_real<BFloatElement>(call);
    case DType::f32:
      return reduce_real<Plain<float, float>>(call);
    case DType::f64:
      return reduce_real<Plain<double, double>>(call);
    case DType::c64:
      return reduce_complex<float>(call);
    case DType::c128:
      return reduce_complex<double>(call);
    case DType::boolean:
      return reduce_boolean(call);
    default:
      return reduce_integers(call, dtype);
  }
}

}  // namespace ringred::cuda
