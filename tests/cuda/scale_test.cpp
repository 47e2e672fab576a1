// Scaled copies on the device: the bits of the CPU's kernel, for every alignment, and beside them nothing.
#include "csrc/cuda/scale.h"

#include <string>

#include "csrc/reduce/reduce.h"
#include "tests/cuda/cpu_kernels.h"
#include "tests/cuda/device.h"

namespace ringred::cuda {
namespace {

void scale_and_compare(DType dtype, std::size_t count, double factor, std::size_t from, std::size_t to) {
  const std::size_t size = info(dtype).size;
  const Bytes input = random_elements(count, dtype, static_cast<unsigned>(count));
  const DeviceArray<std::byte> source(input, from * size);
  const DeviceArray<std::byte> target(count * size, to * size);
  scale(source.data(), target.data(), count, dtype, factor, nullptr);
  scale(source.data(), source.data(), count, dtype, factor, nullptr);
  finish();
  Bytes expected = input;
  if (factor != 1) scale_kernel(instruction_set("auto"), dtype, dtype)(input.data(), expected.data(), count, factor);
  if (!same(target.read(), expected, dtype) || !same(source.read(), expected, dtype))
    check::report(__FILE__, __LINE__,
                  std::string(info(dtype).name) + " differ: " + std::to_string(count) + " elements, factor " +
                      std::to_string(factor) + ", from " + std::to_string(from) + " to " + std::to_string(to));
}

}  // namespace

TEST("scaled and plain copies have the bits of the CPU's") {
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32, DType::f64, DType::i32, DType::i64, DType::u8})
    for (const std::size_t count : {0u, 1u, 15u, 16u, 17u, 1000u})
      for (const std::size_t from : {0u, 1u})
        for (const std::size_t to : {0u, 1u})
          for (const double factor : {1.0, 0.3}) {
            const TypeClass kind = info(dtype).type_class;
            if (factor == 1 || kind == TypeClass::half || kind == TypeClass::real)
              scale_and_compare(dtype, count, factor, from, to);
          }
}

TEST("what cannot be scaled is refused") {
  const DeviceArray<std::int32_t> array(4);
  CHECK_THROWS(scale(array.data(), array.data(), 4, DType::i32, 2, nullptr), "the dtype is int32 and the factor 2");
  const void* const odd = reinterpret_cast<const char*>(array.data()) + 2;
  CHECK_THROWS(scale(odd, array.data(), 1, DType::i32, 1, nullptr), "the source of a copy");
}

}  // namespace ringred::cuda
