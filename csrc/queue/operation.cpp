#include "csrc/queue/operation.h"

#include <algorithm>
#include <bit>
#include <climits>
#include <cstdio>
#include <utility>

#include "csrc/base/futex.h"
#include "csrc/base/mix.h"

namespace ringred {
namespace {

bool is_float(DType dtype) {
  const TypeClass type_class = info(dtype).type_class;
  return type_class == TypeClass::half || type_class == TypeClass::real;
}

bool gathers(CallKind kind) {
  return kind == CallKind::allgather || kind == CallKind::alltoall;
}

bool scatters_rows(CallKind kind) {
  return gathers(kind) || kind == CallKind::reducescatter;
}

bool reduces(CallKind kind) {
  return kind == CallKind::allreduce || kind == CallKind::reducescatter || kind == CallKind::update;
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  char shorter[32];
  std::snprintf(shorter, sizeof shorter, "%g", value);
  double back = 0;
  return std::sscanf(shorter, "%lf", &back) == 1 && back == value ? shorter : text;
}

std::string shape_text(const Tensor& tensor, bool any_rows) {
  std::string text = "[";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i)
    text += (i == 0 ? "" : ", ") + (i == 0 && any_rows ? "*" : std::to_string(tensor.shape[i]));
  return text + "]";
}

}  // namespace

std::size_t Tensor::count() const {
  std::size_t product = 1;
  for (const std::int64_t extent : shape) product *= static_cast<std::size_t>(extent);
  return product;
}

std::size_t Tensor::row_elements() const {
  std::size_t product = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) product *= static_cast<std::size_t>(shape[i]);
  return product;
}

RowRange rows_of(std::size_t rows, int index, int size) {
  const auto ranks = static_cast<std::size_t>(size), place = static_cast<std::size_t>(index);
  const std::size_t each = rows / ranks, more = rows % ranks;
  const std::size_t begin = place * each + std::min(place, more);
  return {begin, begin + each + (place < more ? 1 : 0)};
}

void Request::check(int size) const {
  const std::string what(name_of(kind));
  if (kind == CallKind::broadcast && (root < 0 || root >= size))
    fail_usage("The root of a broadcast must be a member, 0 to " + std::to_string(size - 1) +
               " within the process set: " + "it is " + std::to_string(root) + ".");
  if (kind == CallKind::reducescatter && op != Op::sum && op != Op::average)
    fail_usage("reducescatter takes Sum or Average: op is " + std::string(name_of(op)) + ".");
  check_outputs_apart();
  for (const Tensor& tensor : tensors) {
    const std::string dtype(info(tensor.dtype).name);
    if (reduces(kind) && !is_defined(op, tensor.dtype))
      fail_usage("The operator " + std::string(name_of(op)) + " is not defined for " + dtype + ".");
    if (reduces(kind) && tensor.dtype == DType::boolean && (prescale != 1 || postscale != 1))
      fail_usage("Booleans cannot be scaled: prescale is " + number_text(prescale) + ", postscale " +
                 number_text(postscale) + ".");
    if (scatters_rows(kind) && tensor.shape.empty())
      fail_usage("An array of rank zero has no rows for " + what + ": give it a dimension (reshape(1)).");
    if (kind != CallKind::alltoall) continue;
    std::int64_t left = tensor.shape[0];
    bool fits = tensor.splits.size() == static_cast<std::size_t>(size);
    for (const std::int64_t rows : tensor.splits) {
      fits = fits && rows >= 0 && rows <= left;
      left -= fits ? rows : 0;
    }
    if (!fits || left != 0)
      fail_usage("The splits of an alltoall are one number of rows for each of the " + std::to_string(size) +
                 " members, not negative, and add up to the " + std::to_string(tensor.shape[0]) +
                 " rows of the array: there are " + std::to_string(tensor.splits.size()) + " splits.");
  }
}

const std::byte* Request::end_of_output(const Tensor& tensor) const {
  const bool alike = kind == CallKind::allreduce || kind == CallKind::broadcast || kind == CallKind::update;
  const std::size_t bytes = tensor.count() * info(tensor.dtype).size;
  return alike && tensor.output != nullptr && bytes > 0 ? tensor.output + bytes : nullptr;
}

// What is written twice would depend on chance, and differ between ranks.
void Request::check_outputs_apart() const {
  std::vector<std::pair<const std::byte*, const std::byte*>> outputs;  // beginning and end
  for (const Tensor& tensor : tensors)
    if (const std::byte* end = end_of_output(tensor)) outputs.emplace_back(tensor.output, end);
  std::sort(outputs.begin(), outputs.end());
  for (std::size_t i = 1; i < outputs.size(); ++i)
    if (outputs[i].first < outputs[i - 1].second)
      fail_usage("The outputs of a grouped " + std::string(name_of(kind)) +
                 " must not overlap: two arrays of the list share memory. Pass each array once.");
}

DType Request::wire_dtype(DType dtype) const {
  return wire && is_float(dtype) && info(*wire).size < info(dtype).size ? *wire : dtype;
}

std::uint64_t Request::fingerprint() const {
  std::uint64_t hash = fuse_key();
  hash = mix(hash, static_cast<std::uint64_t>(root) << 32 | tensors.size());
  for (const Tensor& tensor : tensors) {
    hash = mix(hash, static_cast<std::uint64_t>(tensor.dtype) << 32 | tensor.shape.size());
    for (std::size_t i = gathers(kind) ? 1 : 0; i < tensor.shape.size(); ++i)
      hash = mix(hash, static_cast<std::uint64_t>(tensor.shape[i]));
  }
  for (const char letter : tag) hash = mix(hash, static_cast<unsigned char>(letter));
  return update ? mix(hash, update->fingerprint()) : hash;
}

std::uint64_t Request::fuse_key() const {
  const std::uint64_t words = static_cast<std::uint64_t>(kind) << 24 | static_cast<std::uint64_t>(op) << 16 |
                              (wire ? static_cast<std::uint64_t>(*wire) + 1 : 0) << 8 | (norm ? 4 : 0) |
                              (direct ? 2 : 0) | (allow ? 1 : 0);
  std::uint64_t hash = mix(0, words);
  hash = mix(hash, std::bit_cast<std::uint64_t>(prescale));
  return mix(hash, std::bit_cast<std::uint64_t>(postscale));
}

std::uint64_t Request::bytes() const {
  std::uint64_t sum = 0;
  for (const Tensor& tensor : tensors) sum += tensor.count() * info(wire_dtype(tensor.dtype)).size;
  return sum;
}

std::uint32_t Request::runs_into(Run (&run)[Entry::most_runs], int size) const {
  if (gathers(kind)) {
    run[0] = {.count = tensors.size(), .dtype = DType::u8, .wire = DType::u8};
    return 1;
  }
  if (kind == CallKind::broadcast) {
    run[0] = {.count = bytes(), .dtype = DType::u8, .wire = DType::u8};
    return 1;
  }
  std::uint32_t runs = 0;
  for (const Tensor& tensor : tensors) {
    std::uint32_t place = 0;
    while (place < runs && run[place].dtype != tensor.dtype) ++place;
    if (place == runs) run[runs++] = {0, tensor.dtype, wire_dtype(tensor.dtype), direct, norm};
    const RowRange largest = rows_of(tensor.rows(), 0, size);
    run[place].count += kind == CallKind::reducescatter ? largest.end * tensor.row_elements() : tensor.count();
  }
  return runs;
}

std::string Request::describe() const {
  std::string arguments;
  const auto add = [&](const char* key, const std::string& value) {
    arguments += (arguments.empty() ? "" : ", ") + std::string(key) + "=" + value;
  };
  if (reduces(kind) || (gathers(kind) && op != Op::sum)) add("op", std::string(name_of(op)));
  if (kind == CallKind::broadcast) add(call ? "root_rank" : "root", std::to_string(root));
  if (prescale != 1) add("prescale_factor", number_text(prescale));
  if (postscale != 1) add("postscale_factor", number_text(postscale));
  if (wire) add("wire", std::string(info(*wire).name));
  if (direct) add("direct", norm ? "with norm" : "yes");
  if (update) arguments += ", " + update->describe();
  if (tensors.size() != 1 && kind != CallKind::barrier && kind != CallKind::join)
    add("tensors", std::to_string(tensors.size()));
  constexpr std::size_t shown = 4;
  for (std::size_t i = 0; i < std::min(tensors.size(), shown); ++i) {
    add("dtype", std::string(info(tensors[i].dtype).name));
    add("shape", shape_text(tensors[i], gathers(kind)));
  }
  if (!tag.empty()) add("tag", "'" + tag + "'");
  if (tensors.size() > shown) arguments += ", ... " + fingerprint_text(fingerprint());
  return std::string(name_of(kind)) + "(" + arguments + ")";
}

namespace {

std::string_view name_of(Rule rule) {
  return rule == Rule::sgd ? "SGD" : rule == Rule::adam ? "Adam" : "AdamW";
}

std::array<double, 9> numbers_of(const Rates& rates) {
  return {rates.learning_rate,
          rates.weight_decay,
          rates.momentum,
          rates.dampening,
          rates.beta1,
          rates.beta2,
          rates.epsilon,
          rates.step,
          static_cast<double>(rates.nesterov + 2 * rates.maximize + 4 * rates.amsgrad + 8 * rates.first)};
}

}  // namespace

std::uint64_t Update::fingerprint() const {
  std::uint64_t hash = mix(static_cast<std::uint64_t>(rule),
                           (measures ? 1u : 0u) + (keeps_gradients ? 2u : 0u) + (shares_parameters ? 4u : 0u));
  hash = mix(hash, std::bit_cast<std::uint64_t>(factor));
  for (const Rates& one : rates)
    for (const double number : numbers_of(one)) hash = mix(hash, std::bit_cast<std::uint64_t>(number));
  for (const Stretch& stretch : stretches) hash = mix(mix(mix(hash, stretch.begin), stretch.end), stretch.rates);
  return hash;
}

// What does not fit is told by the fingerprint at the end.
std::string Update::describe() const {
  static constexpr const char* names[] = {"lr",    "weight_decay", "momentum", "dampening", "beta1",
                                          "beta2", "eps",          "step",     "flags"};
  std::string text = "rule=" + std::string(name_of(rule)) + (measures ? ", norm only" : "");
  text += ", factor=" + number_text(factor) + ", parameters=" + std::to_string(stretches.size());
  for (std::size_t i = 0; i < std::min<std::size_t>(rates.size(), 3); ++i) {
    const auto numbers = numbers_of(rates[i]);
    for (std::size_t k = 0; k < numbers.size(); ++k)
      if (numbers[k] != 0) text += ", " + std::string(names[k]) + "=" + number_text(numbers[k]);
  }
  return text + " " + fingerprint_text(fingerprint());
}

void Operation::sleep(std::int64_t deadline) {
  std::uint32_t state = pending;
  state_.compare_exchange_strong(state, awaited, std::memory_order_seq_cst);
  if (state != finished) futex_sleep(state_, awaited, 1, deadline);
}

void Operation::raise() const {
  if (failure_) failure_->raise();
}

void Operation::finish(const std::optional<Error>& error) {
  if (error) failure_.emplace(*error);
  if (state_.exchange(finished, std::memory_order_seq_cst) == awaited) futex_wake(state_, INT_MAX, 1);
}

}  // namespace ringred
