#include "csrc/reduce/reduce.h"

#include <string>

#include "csrc/base/error.h"
#include "csrc/reduce/check_operator.h"
#include "csrc/reduce/instruction_sets.h"

namespace ringred {
namespace {

std::size_t index(DType dtype) {
  return static_cast<std::size_t>(dtype);
}

bool is_narrow_integer(DType dtype) {
  return index(dtype) <= index(DType::u32);
}

DType widened(DType dtype) {
  return info(dtype).type_class == TypeClass::signed_integer ? DType::i64 : DType::u64;
}

}  // namespace

const InstructionSet& instruction_set(std::string_view name) {
  std::string known = "auto";
  for (const InstructionSet& set : instruction_sets()) {
    if (!set.runs_here()) continue;
    if (name == "auto" || name == set.name) return set;
    known += ", " + std::string(set.name);
  }
  fail_usage("RINGRED_ISA must be an instruction set that runs here: it is '" + std::string(name) + "', and here run " +
             known + ".");
}

ReduceKernel reduce_kernel(const InstructionSet& set, DType dtype, Op op) {
  check_operator(dtype, op);
  return set.table().reduce[index(dtype)][static_cast<std::size_t>(op)];
}

DType partial_dtype(DType dtype, Op op) {
  if (info(dtype).type_class == TypeClass::half) return DType::f32;
  return op == Op::average && is_narrow_integer(dtype) ? widened(dtype) : dtype;
}

ConvertKernel convert_kernel(const InstructionSet& set, DType from, DType to) {
  const KernelTable& table = set.table();
  if (from == DType::f16 && to == DType::f32) return table.half_to_float;
  if (from == DType::f32 && to == DType::f16) return table.float_to_half;
  if (from == DType::bf16 && to == DType::f32) return table.bfloat_to_float;
  if (from == DType::f32 && to == DType::bf16) return table.float_to_bfloat;
  if (is_narrow_integer(from) && to == widened(from)) return table.widen[index(from)];
  if (is_narrow_integer(to) && from == widened(to)) return table.narrow[index(to)];
  fail_usage("A conversion must be between a dtype and its partial dtype: it is from " + std::string(info(from).name) +
             " to " + std::string(info(to).name) + ".");
}

ScaleKernel scale_kernel(const InstructionSet& set, DType from, DType to) {
  if (const ScaleKernel kernel = set.table().scale[index(from)][index(to)]) return kernel;
  fail_usage("A scaled conversion must keep the dtype or be between floating-point dtypes: it is from " +
             std::string(info(from).name) + " to " + std::string(info(to).name) + ".");
}

}  // namespace ringred
