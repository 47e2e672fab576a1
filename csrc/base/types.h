// The element types and reduction operators, one table each. Everything that asks "which types are there", "how wide
// is one" or "is this operator defined for it" asks here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ringred {

enum class DType : std::uint8_t { i8, u8, i16, u16, i32, u32, i64, u64, f16, bf16, f32, f64, c64, c128, boolean };

enum class TypeClass : std::uint8_t { signed_integer, unsigned_integer, half, real, complex, boolean };

struct DTypeInfo {
  DType dtype;
  std::string_view name;  // as numpy and torch spell it
  std::size_t size;       // bytes of one element
  TypeClass type_class;
};

inline constexpr std::array<DTypeInfo, 15> dtype_table{{
    {DType::i8, "int8", 1, TypeClass::signed_integer},
    {DType::u8, "uint8", 1, TypeClass::unsigned_integer},
    {DType::i16, "int16", 2, TypeClass::signed_integer},
    {DType::u16, "uint16", 2, TypeClass::unsigned_integer},
    {DType::i32, "int32", 4, TypeClass::signed_integer},
    {DType::u32, "uint32", 4, TypeClass::unsigned_integer},
    {DType::i64, "int64", 8, TypeClass::signed_integer},
    {DType::u64, "uint64", 8, TypeClass::unsigned_integer},
    {DType::f16, "float16", 2, TypeClass::half},
    {DType::bf16, "bfloat16", 2, TypeClass::half},
    {DType::f32, "float32", 4, TypeClass::real},
    {DType::f64, "float64", 8, TypeClass::real},
    {DType::c64, "complex64", 8, TypeClass::complex},
    {DType::c128, "complex128", 16, TypeClass::complex},
    {DType::boolean, "bool", 1, TypeClass::boolean},
}};

constexpr const DTypeInfo& info(DType dtype) {
  return dtype_table[static_cast<std::size_t>(dtype)];
}

constexpr std::optional<DType> dtype_named(std::string_view name) {
  for (const DTypeInfo& row : dtype_table)
    if (row.name == name) return row.dtype;
  return std::nullopt;
}

// The numbers of the first six are Horovod's, which scripts store and compare.
enum class Op : std::uint8_t { average = 0, sum = 1, min = 3, max = 4, product = 5 };

struct OpInfo {
  Op op;
  std::string_view name;
};

inline constexpr std::array<OpInfo, 5> op_table{{
    {Op::average, "Average"},
    {Op::sum, "Sum"},
    {Op::min, "Min"},
    {Op::max, "Max"},
    {Op::product, "Product"},
}};

constexpr std::string_view name_of(Op op) {
  for (const OpInfo& row : op_table)
    if (row.op == op) return row.name;
  return "?";
}

// Booleans have a sum (any), product (all), min (all) and max (any), and no average; complex numbers have no order.
constexpr bool is_defined(Op op, DType dtype) {
  switch (info(dtype).type_class) {
    case TypeClass::boolean:
      return op != Op::average;
    case TypeClass::complex:
      return op != Op::min && op != Op::max;
    default:
      return true;
  }
}

}  // namespace ringred
