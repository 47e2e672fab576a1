// The reduce kernels: every instruction set that runs here gives the same bits as plain arithmetic in the stated order.
#include "csrc/reduce/reduce.h"

#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <type_traits>

#include "csrc/reduce/instruction_sets.h"
#include "tests/check.h"

using namespace ringred;

namespace {

// Counts around the width of a vector register and of the kernels' block.
const std::size_t counts[] = {0, 1, 2, 7, 15, 16, 17, 31, 33, 64, 127, 511, 512, 513, 1531};

template <class Body>
void for_each_set(Body body) {
  for (const InstructionSet& set : instruction_sets())
    if (set.runs_here()) body(instruction_set(set.name));
}

// All k inputs to m outputs of which the first m are the inputs themselves.
template <class T>
std::vector<std::vector<T>> reduced(const InstructionSet& set, DType dtype, Op op, std::vector<std::vector<T>> buffers,
                                    std::size_t outputs) {
  std::vector<const void*> in;
  std::vector<void*> out;
  for (auto& buffer : buffers) in.push_back(buffer.data());
  for (std::size_t i = 0; i < outputs; ++i) out.push_back(buffers[i].data());
  reduce_kernel(set, dtype, op)(in.data(), static_cast<int>(in.size()), out.data(), static_cast<int>(outputs),
                                buffers[0].size(), static_cast<std::int64_t>(in.size()));
  buffers.resize(outputs);
  return buffers;
}

template <class T>
T combined(Op op, const std::vector<std::vector<T>>& buffers, std::size_t i) {
  T result = buffers[0][i];
  for (std::size_t k = 1; k < buffers.size(); ++k) {
    const T value = buffers[k][i];
    switch (op) {
      case Op::min:
        result = std::min(result, value);
        break;
      case Op::max:
        result = std::max(result, value);
        break;
      case Op::product:
        result = static_cast<T>(result * value);
        break;
      default:
        result = static_cast<T>(result + value);
    }
  }
  if constexpr (std::is_floating_point_v<T>)
    return op == Op::average ? result / static_cast<T>(buffers.size()) : result;
  else
    return op == Op::average ? static_cast<T>(result / static_cast<T>(buffers.size())) : result;
}

template <class T>
void check_type(DType dtype) {
  std::mt19937 random(7);
  const int most =
      sizeof(T) == 1 ? 3 : 90;  // small enough for a product of nine bytes not to wrap before it is compared
  std::uniform_int_distribution<int> value(std::is_unsigned_v<T> ? 0 : -most, most);
  for (const std::size_t ranks : {1u, 2u, 3u, 4u, 5u, 9u})
    for (const std::size_t count : counts) {
      std::vector<std::vector<T>> buffers(ranks, std::vector<T>(count));
      for (auto& buffer : buffers)
        for (T& element : buffer)
          element = std::is_floating_point_v<T> ? static_cast<T>(value(random) / 7.0) : static_cast<T>(value(random));
      for (const Op op : {Op::sum, Op::average, Op::min, Op::max, Op::product}) {
        if (op == Op::product && !std::is_floating_point_v<T> && ranks > 3 && sizeof(T) < 8) continue;
        for (const std::size_t outputs : {std::size_t{1}, std::min<std::size_t>(2, ranks), ranks})
          for_each_set([&](const InstructionSet& set) {
            for (const auto& result : reduced(set, dtype, op, buffers, outputs))
              for (std::size_t i = 0; i < count; ++i) CHECK_EQ(result[i], combined(op, buffers, i));
          });
      }
    }
}

float float_of(std::uint16_t half, DType dtype) {
  const InstructionSet& set = instruction_set("baseline");
  float value = 0;
  convert_kernel(set, dtype, DType::f32)(&half, &value, 1);
  return value;
}

// What binary16 means, by its definition.
double half_by_definition(std::uint16_t half) {
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::nan("") : sign * HUGE_VAL;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

}  // namespace

TEST("integers") {
  check_type<std::int8_t>(DType::i8);
  check_type<std::uint8_t>(DType::u8);
  check_type<std::int16_t>(DType::i16);
  check_type<std::uint16_t>(DType::u16);
  check_type<std::int32_t>(DType::i32);
  check_type<std::uint32_t>(DType::u32);
  check_type<std::int64_t>(DType::i64);
  check_type<std::uint64_t>(DType::u64);
}

TEST("floats") {
  check_type<float>(DType::f32);
  check_type<double>(DType::f64);
}

TEST("integer averages do not wrap and truncate toward zero") {
  for_each_set([](const InstructionSet& set) {
    const auto high = reduced<std::int8_t>(set, DType::i8, Op::average, {{127, -128, -7}, {127, -128, -8}}, 1);
    CHECK(high[0] == std::vector<std::int8_t>({127, -128, -7}));
    const auto large = reduced<std::uint32_t>(set, DType::u32, Op::average, {{4294967295u}, {4294967293u}}, 1);
    CHECK_EQ(large[0][0], 4294967294u);
  });
}

TEST("every half converts by its definition and back to itself") {
  for_each_set([](const InstructionSet& set) {
    std::vector<std::uint16_t> halves(65536), back(65536);
    std::iota(halves.begin(), halves.end(), std::uint16_t{0});
    std::vector<float> floats(65536);
    convert_kernel(set, DType::f16, DType::f32)(halves.data(), floats.data(), 65536);
    convert_kernel(set, DType::f32, DType::f16)(floats.data(), back.data(), 65536);
    for (std::size_t i = 0; i < 65536; ++i) {
      const double wanted = half_by_definition(halves[i]);
      CHECK(std::isnan(wanted) ? std::isnan(floats[i])
                               : floats[i] == wanted && std::signbit(floats[i]) == std::signbit(wanted));
      CHECK(std::isnan(wanted) ? (back[i] & 0x7fff) > 0x7c00 : back[i] == halves[i]);
    }
  });
}

TEST("floats round to the nearest half, ties to even") {
  for_each_set([](const InstructionSet& set) {
    for (unsigned half = 0; half < 0x7c00; ++half) {
      const double low = half_by_definition(static_cast<std::uint16_t>(half));
      const double high = half == 0x7bff ? 65536.0 : half_by_definition(static_cast<std::uint16_t>(half + 1));
      const auto middle = static_cast<float>((low + high) / 2);
      const float values[] = {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, HUGE_VALF)};
      std::uint16_t rounded[3];
      convert_kernel(set, DType::f32, DType::f16)(values, rounded, 3);
      CHECK_EQ(rounded[0], half);
      CHECK_EQ(rounded[1], half + (half & 1));
      CHECK_EQ(rounded[2], half + 1);
    }
  });
}

TEST("bfloat16 rounds to the nearest, ties to even, and keeps nan and infinity") {
  for_each_set([](const InstructionSet& set) {
    for (std::uint32_t upper = 0; upper < 0x7f80; ++upper)
      for (const std::uint32_t lower : {0x0000u, 0x7fffu, 0x8000u, 0x8001u}) {
        const float value = std::bit_cast<float>(upper << 16 | lower);
        std::uint16_t rounded = 0;
        convert_kernel(set, DType::f32, DType::bf16)(&value, &rounded, 1);
        CHECK_EQ(rounded, upper + (lower > 0x8000 || (lower == 0x8000 && (upper & 1)) ? 1 : 0));
      }
    const float special[] = {std::nanf(""), HUGE_VALF, -HUGE_VALF, std::bit_cast<float>(0x7f800001u)};
    std::uint16_t bits[4];
    convert_kernel(set, DType::f32, DType::bf16)(special, bits, 4);
    CHECK((bits[0] & 0x7fff) > 0x7f80);
    CHECK_EQ(bits[1], 0x7f80);
    CHECK_EQ(bits[2], 0xff80);
    CHECK((bits[3] & 0x7fff) > 0x7f80);
  });
}

TEST("halves are summed in fp32 and rounded once") {
  // 2048 + 1 + 1: in binary16 each step would round back to 2048.
  for_each_set([](const InstructionSet& set) {
    std::uint16_t big = 0, one = 0;
    const float values[] = {2048.0f, 1.0f};
    convert_kernel(set, DType::f32, DType::f16)(&values[0], &big, 1);
    convert_kernel(set, DType::f32, DType::f16)(&values[1], &one, 1);
    const auto sum = reduced<std::uint16_t>(set, DType::f16, Op::sum, {{big}, {one}, {one}}, 1);
    CHECK_EQ(float_of(sum[0][0], DType::f16), 2050.0f);
    // 60000 + 60000 overflows binary16; the average does not.
    const float large = 60000.0f;
    std::uint16_t half = 0;
    convert_kernel(set, DType::f32, DType::f16)(&large, &half, 1);
    CHECK_EQ(float_of(reduced<std::uint16_t>(set, DType::f16, Op::average, {{half}, {half}}, 1)[0][0], DType::f16),
             60000.0f);
  });
}

TEST("a nan on any rank survives minimum and maximum") {
  const float nan = std::nanf("");
  for_each_set([&](const InstructionSet& set) {
    for (const Op op : {Op::min, Op::max})
      for (const auto& buffers : {std::vector<std::vector<float>>{{nan}, {1}}, {{1}, {nan}}, {{1}, {nan}, {2}}})
        CHECK(std::isnan(reduced(set, DType::f32, op, buffers, 1)[0][0]));
  });
}

TEST("complex and boolean") {
  using Complex = std::complex<float>;
  for_each_set([](const InstructionSet& set) {
    const auto sum = reduced<Complex>(set, DType::c64, Op::average, {{{1, 2}}, {{3, -6}}}, 2);
    CHECK(sum[1][0] == Complex(2, -2));
    const auto product = reduced<Complex>(set, DType::c64, Op::product, {{{1, 2}}, {{3, 4}}}, 1);
    CHECK(product[0][0] == Complex(-5, 10));
    const auto any = reduced<std::uint8_t>(set, DType::boolean, Op::sum, {{0, 1, 1}, {0, 0, 1}}, 1);
    CHECK(any[0] == std::vector<std::uint8_t>({0, 1, 1}));
    const auto all = reduced<std::uint8_t>(set, DType::boolean, Op::product, {{0, 1, 1}, {0, 0, 1}}, 1);
    CHECK(all[0] == std::vector<std::uint8_t>({0, 0, 1}));
  });
}

TEST("every instruction set gives the same bits") {
  std::mt19937 random(11);
  std::normal_distribution<double> value;
  for (const std::size_t ranks : {2u, 3u, 4u})
    for (const auto& [dtype, op] : {std::pair{DType::c128, Op::product}, std::pair{DType::c64, Op::product},
                                    std::pair{DType::f64, Op::average}, std::pair{DType::f64, Op::product}}) {
      std::vector<std::vector<double>> buffers(ranks, std::vector<double>(1024));
      for (auto& buffer : buffers)
        for (double& element : buffer) element = value(random);
      std::vector<std::vector<double>> results;
      for_each_set([&, dtype = dtype, op = op](const InstructionSet& set) {
        auto mine = buffers;
        std::vector<const void*> in;
        for (auto& buffer : mine) in.push_back(buffer.data());
        void* out = mine[0].data();
        reduce_kernel(set, dtype, op)(in.data(), static_cast<int>(ranks), &out, 1, 8192 / info(dtype).size,
                                      static_cast<std::int64_t>(ranks));
        results.push_back(mine[0]);
      });
      for (const auto& result : results) CHECK(std::memcmp(result.data(), results[0].data(), 8192) == 0);
    }
}

TEST("64-bit averages wrap in the sum, as sums do") {
  for_each_set([](const InstructionSet& set) {
    const std::int64_t most = std::numeric_limits<std::int64_t>::max();
    CHECK_EQ(reduced<std::int64_t>(set, DType::i64, Op::average, {{most}, {most}}, 1)[0][0], -1);
  });
}

TEST("undefined operators and unknown instruction sets are refused") {
  const InstructionSet& set = instruction_set("auto");
  CHECK_THROWS(reduce_kernel(set, DType::boolean, Op::average), "Average is not for bool");
  CHECK_THROWS(reduce_kernel(set, DType::c64, Op::max), "Max is not for complex64");
  CHECK_THROWS(instruction_set("mmx"), "it is 'mmx'");
  CHECK_THROWS(convert_kernel(set, DType::f32, DType::i8), "from float32 to int8");
}
