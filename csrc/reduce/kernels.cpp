// The reduce loops. This file is compiled once for each instruction set, with RINGRED_ISA naming the namespace; the
// compiler vectorises the loops. See elements.h for why nothing here may have external linkage but kernel_table().
//
// Traffic of a call: every input is read once, every output written once; accumulators stay in registers (2 or 4
// inputs) or in a block of the first-level cache (any other number).
#include "csrc/reduce/kernels.h"

#include "csrc/reduce/elements.h"
#include "csrc/reduce/scale_kernels.h"
#include "csrc/reduce/update_kernels.h"

namespace {

using ringred::ConvertKernel;
using ringred::KernelTable;
using ringred::ReduceKernel;

constexpr std::size_t block_elements = 512;  // of at most 16 bytes: 8 KiB, a quarter of the smallest L1 in use

template <std::size_t... numbers>
struct Numbers {};

// `further` counts the inputs after the first, `places` the outputs. Packs instead of loops: the vectoriser sees one
// straight body.
template <class Element, class Combine, class Finish, std::size_t... further, std::size_t... places>
void in_registers(const void* const* inputs, void* const* outputs, std::size_t count, Finish finish,
                  Numbers<further...>, Numbers<places...>) {
  using Stored = typename Element::Stored;
  const Stored* first = static_cast<const Stored*>(inputs[0]);
  const Stored* in[] = {static_cast<const Stored*>(inputs[further])...};
  Stored* out[] = {static_cast<Stored*>(outputs[places])...};
  // Outputs equal inputs at the same index or do not overlap them, so there is no dependency between iterations.
#pragma GCC ivdep
  for (std::size_t i = 0; i < count; ++i) {
    auto sum = Element::load(first[i]);
    ((sum = Combine::apply(sum, Element::load(in[further - 1][i]))), ...);
    const Stored result = Element::store(finish(sum));
    ((out[places][i] = result), ...);
  }
}

template <class Element, class Combine, class Finish>
void in_blocks(const void* const* inputs, int input_count, void* const* outputs, int output_count, std::size_t count,
               Finish finish) {
  using Stored = typename Element::Stored;
  typename Element::Accumulator sums[block_elements];
  for (std::size_t start = 0; start < count; start += block_elements) {
    const std::size_t block = count - start < block_elements ? count - start : block_elements;
    const Stored* first = static_cast<const Stored*>(inputs[0]) + start;
    for (std::size_t i = 0; i < block; ++i) sums[i] = Element::load(first[i]);
    for (int k = 1; k < input_count; ++k) {
      const Stored* in = static_cast<const Stored*>(inputs[k]) + start;
      for (std::size_t i = 0; i < block; ++i) sums[i] = Combine::apply(sums[i], Element::load(in[i]));
    }
    for (int k = 0; k < output_count; ++k) {
      Stored* out = static_cast<Stored*>(outputs[k]) + start;
      for (std::size_t i = 0; i < block; ++i) out[i] = Element::store(finish(sums[i]));
    }
  }
}

template <class Element, class Combine, class Finish>
void reduce(const void* const* inputs, int input_count, void* const* outputs, int output_count, std::size_t count,
            Finish finish) {
  if (input_count == 2 && output_count == 1)
    in_registers<Element, Combine>(inputs, outputs, count, finish, Numbers<1>(), Numbers<0>());
  else if (input_count == 2 && output_count == 2)
    in_registers<Element, Combine>(inputs, outputs, count, finish, Numbers<1>(), Numbers<0, 1>());
  else if (input_count == 4 && output_count == 1)
    in_registers<Element, Combine>(inputs, outputs, count, finish, Numbers<1, 2, 3>(), Numbers<0>());
  else if (input_count == 4 && output_count == 2)
    in_registers<Element, Combine>(inputs, outputs, count, finish, Numbers<1, 2, 3>(), Numbers<0, 1>());
  else if (input_count == 4 && output_count == 4)
    in_registers<Element, Combine>(inputs, outputs, count, finish, Numbers<1, 2, 3>(), Numbers<0, 1, 2, 3>());
  else
    in_blocks<Element, Combine, Finish>(inputs, input_count, outputs, output_count, count, finish);
}

template <class Element, class Combine>
void combine(const void* const* inputs, int input_count, void* const* outputs, int output_count, std::size_t count,
             std::int64_t) {
  reduce<Element, Combine>(inputs, input_count, outputs, output_count, count, Keep{});
}

template <class Stored>
void signed_average(const void* const* inputs, int input_count, void* const* outputs, int output_count,
                    std::size_t count, std::int64_t divisor) {
  reduce<SignedSum<Stored>, Add>(inputs, input_count, outputs, output_count, count, DivideSigned{divisor});
}

template <class Stored>
void unsigned_average(const void* const* inputs, int input_count, void* const* outputs, int output_count,
                      std::size_t count, std::int64_t divisor) {
  const Divide<std::uint64_t> divide{static_cast<std::uint64_t>(divisor)};
  reduce<Plain<Stored, std::uint64_t>, Add>(inputs, input_count, outputs, output_count, count, divide);
}

// Multiplying by the reciprocal of a power of two gives the quotient exactly; other divisors are divided by, so that
// the average is rounded once after the sum.
template <class Element>
void real_average(const void* const* inputs, int input_count, void* const* outputs, int output_count, std::size_t count,
                  std::int64_t divisor) {
  using Accumulator = typename Element::Accumulator;
  const Accumulator value = static_cast<Accumulator>(divisor);
  if ((divisor & (divisor - 1)) == 0)
    reduce<Element, Add>(inputs, input_count, outputs, output_count, count, Scale<Accumulator>{1 / value});
  else
    reduce<Element, Add>(inputs, input_count, outputs, output_count, count, Divide<Accumulator>{value});
}

// Sums and averages treat real and imaginary parts alike.
template <ReduceKernel kernel>
void as_pairs(const void* const* inputs, int input_count, void* const* outputs, int output_count, std::size_t count,
              std::int64_t divisor) {
  kernel(inputs, input_count, outputs, output_count, 2 * count, divisor);
}

template <class From, class To>
void convert(const void* input, void* output, std::size_t count) {
  const auto* in = static_cast<const typename From::Stored*>(input);
  auto* out = static_cast<typename To::Stored*>(output);
#pragma GCC ivdep
  for (std::size_t i = 0; i < count; ++i) out[i] = To::store(static_cast<typename To::Accumulator>(From::load(in[i])));
}

// Integer sums and products wrap, which C++ defines for unsigned types only. 32 bits at least: two 16-bit factors
// would be promoted to int and overflow it.
template <class Signed, class Unsigned, class Wrapping, class Wide>
void fill_integer(KernelTable& table, int signed_row) {
  ReduceKernel* row = table.reduce[signed_row];
  row[0] = signed_average<Signed>;
  row[1] = combine<Plain<Unsigned, Wrapping>, Add>;
  row[3] = combine<Plain<Signed, Signed>, Minimum>;
  row[4] = combine<Plain<Signed, Signed>, Maximum>;
  row[5] = combine<Plain<Unsigned, Wide>, Multiply>;
  ReduceKernel* unsigned_row = table.reduce[signed_row + 1];
  unsigned_row[0] = unsigned_average<Unsigned>;
  unsigned_row[1] = row[1];
  unsigned_row[3] = combine<Plain<Unsigned, Unsigned>, Minimum>;
  unsigned_row[4] = combine<Plain<Unsigned, Unsigned>, Maximum>;
  unsigned_row[5] = row[5];
}

template <class Signed, class Unsigned>
void fill_conversions(KernelTable& table, int signed_row) {
  table.widen[signed_row] = convert<Plain<Signed, std::int64_t>, Plain<std::int64_t, std::int64_t>>;
  table.narrow[signed_row] = convert<Plain<std::int64_t, std::int64_t>, Plain<Signed, std::int64_t>>;
  table.widen[signed_row + 1] = convert<Plain<Unsigned, std::uint64_t>, Plain<std::uint64_t, std::uint64_t>>;
  table.narrow[signed_row + 1] = convert<Plain<std::uint64_t, std::uint64_t>, Plain<Unsigned, std::uint64_t>>;
}

template <class Element>
void fill_real(KernelTable& table, int row) {
  table.reduce[row][0] = real_average<Element>;
  table.reduce[row][1] = combine<Element, Add>;
  table.reduce[row][3] = combine<Element, Minimum>;
  table.reduce[row][4] = combine<Element, Maximum>;
  table.reduce[row][5] = combine<Element, Multiply>;
}

template <class Real>
void fill_complex(KernelTable& table, int row) {
  table.reduce[row][0] = as_pairs<real_average<Plain<Real, Real>>>;
  table.reduce[row][1] = as_pairs<combine<Plain<Real, Real>, Add>>;
  table.reduce[row][5] = combine<Complex<Real>, Multiply>;
}

KernelTable make_table() {
  KernelTable table{};
  fill_integer<std::int8_t, std::uint8_t, std::uint8_t, std::uint32_t>(table, 0);
  fill_integer<std::int16_t, std::uint16_t, std::uint16_t, std::uint32_t>(table, 2);
  fill_integer<std::int32_t, std::uint32_t, std::uint32_t, std::uint32_t>(table, 4);
  fill_integer<std::int64_t, std::uint64_t, std::uint64_t, std::uint64_t>(table, 6);
  fill_conversions<std::int8_t, std::uint8_t>(table, 0);
  fill_conversions<std::int16_t, std::uint16_t>(table, 2);
  fill_conversions<std::int32_t, std::uint32_t>(table, 4);
  fill_real<Half>(table, 8);
  fill_real<BFloat>(table, 9);
  fill_real<Plain<float, float>>(table, 10);
  fill_real<Plain<double, double>>(table, 11);
  fill_complex<float>(table, 12);
  fill_complex<double>(table, 13);
  table.reduce[14][1] = table.reduce[14][4] = combine<Boolean, Any>;
  table.reduce[14][3] = table.reduce[14][5] = combine<Boolean, All>;
  table.half_to_float = convert<Half, Plain<float, float>>;
  table.float_to_half = convert<Plain<float, float>, Half>;
  table.bfloat_to_float = convert<BFloat, Plain<float, float>>;
  table.float_to_bfloat = convert<Plain<float, float>, BFloat>;
  fill_scales(table);
  fill_updates(table);
  return table;
}

}  // namespace

namespace ringred::RINGRED_ISA {
const KernelTable& kernel_table() {
  static const KernelTable table = make_table();
  return table;
}
}  // namespace ringred::RINGRED_ISA
