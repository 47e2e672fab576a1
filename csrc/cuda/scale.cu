#include <algorithm>
#include <cstdint>
#include <string>

#include "csrc/base/error.h"
#include "csrc/cuda/elements.cuh"
#include "csrc/cuda/launch.h"
#include "csrc/cuda/scale.h"
#include "csrc/cuda/stretch.cuh"

namespace ringred::cuda {
namespace {

template <class Element>
struct Times {
  using Stored = typename Element::Stored;
  typename Element::Accumulator factor;
  __device__ Stored operator()(Stored value) const { return Element::store(Element::load(value) * factor); }
};

template <class Bits>
struct Same {
  using Stored = Bits;
  __device__ Stored operator()(Stored value) const { return value; }
};

template <class Convert>
struct ScaleBody {
  using Stored = typename Convert::Stored;
  const Stored* from;
  Stored* to;
  Convert convert;

  template <unsigned wide>
  __device__ __forceinline__ void at(std::size_t start) const {
    Vector<Stored, wide> values = vector_at<Stored, wide>(from + start);
#pragma unroll
    for (unsigned k = 0; k < wide; ++k) values.element[k] = convert(values.element[k]);
    store_at(to + start, values);
  }
};

template <class Convert>
__global__ void __launch_bounds__(256) scale_array(const __grid_constant__ ScaleBody<Convert> body, Stretch stretch) {
  stretch.walk<vector_elements<typename Convert::Stored>>(body);
}

template <class Convert>
void start(const void* from, void* to, std::size_t count, Convert convert, Stream stream) {
  using Stored = typename Convert::Stored;
  Alignment alignment;
  alignment.add(from);
  alignment.add(to);
  const Stretch stretch = alignment.stretch<Stored>(count);
  const ScaleBody<Convert> body{static_cast<const Stored*>(from), static_cast<Stored*>(to), convert};
  launch("of a scaled copy", scale_array<Convert>, strided_grid(stretch.items()), stream, body, stretch);
}

template <class Element>
void start_times(const void* from, void* to, std::size_t count, double factor, Stream stream) {
  start(from, to, count, Times<Element>{static_cast<typename Element::Accumulator>(factor)}, stream);
}

// Types of 16 bytes are copied as two elements of 8.
void start_copy(const void* from, void* to, std::size_t bytes, std::size_t element_size, Stream stream) {
  switch (element_size) {
    case 1:
      return start(from, to, bytes, Same<std::uint8_t>{}, stream);
    case 2:
      return start(from, to, bytes / 2, Same<std::uint16_t>{}, stream);
    case 4:
      return start(from, to, bytes / 4, Same<std::uint32_t>{}, stream);
    default:
      return start(from, to, bytes / 8, Same<std::uint64_t>{}, stream);
  }
}

}  // namespace

void scale(const void* from, void* to, std::size_t count, DType dtype, double factor, Stream stream) {
  if (count == 0 || (factor == 1 && from == to)) return;
  check_array(from, dtype, "the source of a copy", 0);
  check_array(to, dtype, "the destination of a copy", 0);
  if (factor == 1) return start_copy(from, to, count * info(dtype).size, info(dtype).size, stream);
  switch (dtype) {
    case DType::f16:
      return start_times<HalfElement>(from, to, count, factor, stream);
    case DType::bf16:
      return start_times<BFloatElement>(from, to, count, factor, stream);
    case DType::f32:
      return start_times<Plain<float, float>>(from, to, count, factor, stream);
    case DType::f64:
      return start_times<Plain<double, double>>(from, to, count, factor, stream);
    default:
      fail_usage("Only float16, bfloat16, float32 and float64 are scaled: the dtype is " +
                 std::string(info(dtype).name) + " and the factor " + std::to_string(factor) + ". Use the factor 1.");
  }
}

}  // namespace ringred::cuda
