// Reductions on the device: every dtype and operator gives the bits of the CPU's kernel, for any number of arrays at
// any alignment, and writes nothing else.
#include "csrc/cuda/reduce.h"

#include "csrc/reduce/reduce.h"
#include "tests/cuda/cpu_kernels.h"
#include "tests/cuda/device.h"

namespace ringred::cuda {
namespace {

constexpr std::int64_t no_divisor = 0;

struct Case {
  DType dtype;
  Op op;
  std::size_t count;
  int inputs, outputs;
  std::int64_t divisor = no_divisor;
  std::size_t shift = 0;  // of all arrays, in elements
  bool unlike = false;    // the last input has another alignment
  bool in_place = false;  // output k is input k
};

std::size_t shift_of(const Case& one, int number) {
  const std::size_t more = one.unlike && number + 1 == one.inputs ? 1 : 0;
  // Elements of 16 bytes lie at multiples of 8.
  return (one.shift + more) * std::min<std::size_t>(info(one.dtype).size, 8);
}

Bytes on_cpu(const Case& one, const std::vector<Bytes>& inputs) {
  Bytes output(inputs[0].size());
  std::vector<const void*> addresses;
  for (const Bytes& input : inputs) addresses.push_back(input.data());
  void* place = output.data();
  reduce_kernel(instruction_set("auto"), one.dtype, one.op)(addresses.data(), one.inputs, &place, 1, one.count,
                                                            one.divisor);
  return output;
}

void check_case(const Case& one) {
  std::vector<Bytes> values;
  std::vector<DeviceArray<std::byte>> inputs, outputs;
  ReduceArrays arrays{};
  arrays.input_count = one.inputs;
  arrays.output_count = one.outputs;
  for (int k = 0; k < one.inputs; ++k) {
    values.push_back(random_elements(one.count, one.dtype, static_cast<unsigned>(k)));
    arrays.inputs[k] = inputs.emplace_back(values.back(), shift_of(one, k)).data();
  }
  for (int k = 0; k < one.outputs; ++k) {
    outputs.emplace_back(values[0].size(), shift_of(one, 0));
    arrays.outputs[k] = one.in_place ? inputs[static_cast<std::size_t>(k)].data() : outputs.back().data();
  }
  reduce(arrays, one.count, one.dtype, one.op, one.divisor, nullptr);
  finish();
  const Bytes want = on_cpu(one, values);
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    const Bytes got = (one.in_place ? inputs[k] : outputs[k]).read();
    if (!same(got, want, one.dtype))
      CHECK_EQ(std::string(info(one.dtype).name) + " " + std::string(name_of(one.op)) + " of " +
                   std::to_string(one.inputs) + ", element " + std::to_string(first_difference(got, want, one.dtype)) +
                   " of " + std::to_string(one.count),
               "as on the CPU");
  }
  for (std::size_t k = one.in_place ? outputs.size() : 0; k < inputs.size(); ++k) CHECK(inputs[k].read() == values[k]);
}

template <class Body>
void for_each_type_and_operator(Body body) {
  for (const DTypeInfo& row : dtype_table)
    for (const OpInfo& op : op_table)
      if (is_defined(op.op, row.dtype)) body(row.dtype, op.op);
}

TEST("every dtype and operator, any number of inputs and outputs") {
  for_each_type_and_operator([](DType dtype, Op op) {
    for (const int inputs : {1, 2, 3, 4, 5, 8, 17}) check_case({dtype, op, 1037, inputs, inputs % 3 + 1, inputs});
  });
}

TEST("counts around a vector and a block, all alignments") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::u8, DType::f64, DType::c128})
    for (const std::size_t count : {0u, 1u, 2u, 7u, 16u, 17u, 255u, 4111u})
      for (const std::size_t shift : {0u, 1u, 3u, 15u})
        for (const bool unlike : {false, true}) check_case({dtype, Op::sum, count, 3, 2, no_divisor, shift, unlike});
}

TEST("outputs may be inputs") {
  for_each_type_and_operator([](DType dtype, Op op) {
    for (const std::size_t shift : {0u, 1u}) check_case({dtype, op, 999, 4, 4, 3, shift, shift == 1, true});
  });
}

TEST("more elements than threads of the device") {
  for (const DType dtype : {DType::f16, DType::f32}) check_case({dtype, Op::average, 1 << 19, 2, 1, 2});
}

TEST("the most arrays that there may be") {
  check_case({DType::f16, Op::average, 100, most_arrays, most_arrays, most_arrays});
}

TEST("wrong arguments are refused") {
  const DeviceArray<float> array(4);
  ReduceArrays arrays{};
  arrays.inputs[0] = arrays.outputs[0] = array.data();
  arrays.input_count = arrays.output_count = 1;
  CHECK_THROWS(reduce(arrays, 4, DType::boolean, Op::average, 2, nullptr), "Average is not for bool");
  CHECK_THROWS(reduce(arrays, 4, DType::f32, Op::average, 0, nullptr), "the divisor is 0");
  arrays.input_count = most_arrays + 1;
  CHECK_THROWS(reduce(arrays, 4, DType::f32, Op::sum, 0, nullptr), "it has 33 and 1. Reduce groups");
  arrays.input_count = 2;
  CHECK_THROWS(reduce(arrays, 4, DType::f32, Op::sum, 0, nullptr), "input 1 (float32) is at 0");
  arrays.inputs[1] = reinterpret_cast<const char*>(array.data()) + 2;
  CHECK_THROWS(reduce(arrays, 1, DType::f32, Op::sum, 0, nullptr), "input 1 (float32) is at");
}

}  // namespace
}  // namespace ringred::cuda
