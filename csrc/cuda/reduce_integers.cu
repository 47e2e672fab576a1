// Reductions of integers: sums and products wrap, averages are sums of 64 bits divided once, truncating toward zero.
#include "csrc/cuda/reduce_start.cuh"

namespace ringred::cuda {
namespace {

// 32 bits at least: two 16-bit factors would be promoted to int and overflow it.
template <class Signed, class Unsigned, class Wide>
void reduce_signed(const ReduceCall& call) {
  if (call.op == Op::average)
    start<SignedSum<Signed>>(call, Arithmetic{false}, DivideSigned{call.divisor});
  else if (call.op == Op::sum || call.op == Op::product)
    start<Plain<Unsigned, Wide>>(call, Arithmetic{call.op == Op::product}, Keep{});
  else
    start_extreme<Plain<Signed, Signed>>(call);
}

template <class Unsigned, class Wide>
void reduce_unsigned(const ReduceCall& call) {
  if (call.op == Op::average)
    start<Plain<Unsigned, std::uint64_t>>(call, Arithmetic{false},
                                          Divide<std::uint64_t>{static_cast<std::uint64_t>(call.divisor)});
  else if (call.op == Op::sum || call.op == Op::product)
    start<Plain<Unsigned, Wide>>(call, Arithmetic{call.op == Op::product}, Keep{});
  else
    start_extreme<Plain<Unsigned, Unsigned>>(call);
}

}  // namespace

void reduce_integers(const ReduceCall& call, DType dtype) {
  switch (dtype) {
    case DType::i8:
      return reduce_signed<std::int8_t, std::uint8_t, std::uint32_t>(call);
    case DType::u8:
      return reduce_unsigned<std::uint8_t, std::uint32_t>(call);
    case DType::i16:
      return reduce_signed<std::int16_t, std::uint16_t, std::uint32_t>(call);
    case DType::u16:
      return reduce_unsigned<std::uint16_t, std::uint32_t>(call);
    case DType::i32:
      return reduce_signed<std::int32_t, std::uint32_t, std::uint32_t>(call);
    case DType::u32:
      return reduce_unsigned<std::uint32_t, std::uint32_t>(call);
    case DType::i64:
      return reduce_signed<std::int64_t, std::uint64_t, std::uint64_t>(call);
    default:
      return reduce_unsigned<std::uint64_t, std::uint64_t>(call);
  }
}

}  // namespace ringred::cuda
