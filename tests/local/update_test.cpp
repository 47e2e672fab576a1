// The optimizer steps: every instruction set gives the bits of plain arithmetic in the element type, which is within
// the error of its operations of exact arithmetic; the norm of an average is the one of a stated order.
#include "csrc/reduce/update.h"

#include <cmath>
#include <limits>

#include "csrc/reduce/instruction_sets.h"
#include "csrc/reduce/reduce.h"
#include "tests/check.h"
#include "tests/local/update_call.h"
#include "tests/local/update_reference.h"

using namespace ringred;
using reference::all_settings;
using reference::Array;
using reference::Bounded;
using reference::call;
using reference::called;
using reference::dtype_of;
using reference::same;
using reference::Setting;
using reference::Shape;
using reference::shapes;
using reference::Slice;
using reference::slice_of;

namespace {

// Counts around the width of a vector register and of the kernels' blocks, of 256 and of 128 elements.
const std::size_t counts[] = {0, 1, 7, 15, 16, 17, 33, 127, 128, 129, 255, 257, 700};

template <class Body>
void for_each_set(Body body) {
  for (const InstructionSet& set : instruction_sets())
    if (set.runs_here()) body(instruction_set(set.name));
}

template <class Real>
Array<Real> average_of(const InstructionSet& set, const Slice<Real>& slice) {
  Array<Real> average(slice.parameter.size());
  std::vector<const void*> inputs;
  for (const auto& gradient : slice.gradients) inputs.push_back(gradient.data());
  void* output = average.data();
  reduce_kernel(set, dtype_of<Real>, Op::average)(inputs.data(), static_cast<int>(inputs.size()), &output, 1,
                                                  average.size(), slice.shape.divisor);
  return average;
}

template <class Real>
void check_close(Real value, Bounded<Real> wanted) {
  const auto most = 1000 * std::numeric_limits<Real>::epsilon() * (1 + std::fabs(wanted.value));
  CHECK(wanted.error < most);  // the bound says something
  if (!(std::fabs(value - wanted.value) <= wanted.error)) CHECK_EQ(value, wanted.value);
}

// Element by element: the bits of arithmetic in Real, and close to exact arithmetic.
template <class Real>
void check_result(const Setting& setting, const Slice<Real>& before, const Slice<Real>& after, bool finite) {
  Slice<Real> wanted = before;
  const Shape& shape = before.shape;
  for (std::size_t i = 0; i < before.parameter.size(); ++i) {
    Real sum = before.gradients[0][i];
    Bounded<Real> bounded_sum{sum, 0};
    for (std::size_t k = 1; k < shape.parts; ++k) {
      sum += before.gradients[k][i];
      bounded_sum = bounded_sum + Bounded<Real>{before.gradients[k][i], 0};
    }
    Bounded<Real> parameter{before.parameter[i], 0}, bounded[3];
    Real result = before.parameter[i], state[3];
    for (int k = 0; k < 3; ++k) bounded[k].value = state[k] = before.state[k][i];
    const Bounded<Real> divisor{static_cast<long double>(shape.divisor), 0};
    wanted.average[i] = sum / static_cast<Real>(shape.divisor);
    reference::step(setting, shape.factor, wanted.average[i], result, state);
    reference::step(setting, shape.factor, bounded_sum / divisor, parameter, bounded);
    if (shape.in_place < shape.outputs) wanted.parameter[i] = result;
    for (auto& output : wanted.outputs) output[i] = result;
    for (int k = 0; k < 3; ++k) wanted.state[k][i] = state[k];
    if (finite) {
      check_close(after.outputs[0][i], parameter);
      for (int k = 0; k < 3; ++k) check_close(after.state[k][i], bounded[k]);
    }
  }
  CHECK(after == wanted);
}

template <class Body>
void for_each_shape_and_setting(Body body) {
  std::size_t number = 0;
  for (const Shape& shape : shapes)
    for (const Setting& setting : all_settings())
      if (!check::sanitized || number++ % 5 == 0) body(shape, setting);
}

template <class Real>
void check_rules() {
  for_each_shape_and_setting([](const Shape& shape, const Setting& setting) {
    for (const std::size_t count : counts) {
      const Slice<Real> before = slice_of<Real>(count, shape);
      const Slice<Real> after = called(instruction_set("baseline"), setting, before);
      check_result(setting, before, after, true);
      for_each_set([&](const InstructionSet& set) {
        CHECK(called(set, setting, before) == after);
        CHECK(same(after.average, average_of(set, before)));
      });
    }
  });
}

// Elements of the calls lie anywhere in a vector register, and blocks begin anywhere.
template <class Real>
void check_splits() {
  for_each_shape_and_setting([](const Shape& shape, const Setting& setting) {
    const std::size_t count = 700;
    const Slice<Real> before = slice_of<Real>(count, shape);
    for_each_set([&](const InstructionSet& set) {
      const Slice<Real> whole = called(set, setting, before);
      for (const std::size_t place : {1u, 5u, 128u, 350u, 511u, 699u}) {
        Slice<Real> parts = before;
        call(set, setting, parts, place, count, parts.average.data());
        call(set, setting, parts, 0, place, parts.average.data());
        CHECK(parts == whole);
      }
    });
  });
}

template <class Real>
void check_specials() {
  using Limits = std::numeric_limits<Real>;
  for_each_shape_and_setting([](const Shape& shape, const Setting& setting) {
    const std::size_t count = 300;
    Slice<Real> before = slice_of<Real>(count, shape);
    for (std::size_t i = 0; i < count; i += 6) {
      before.gradients[i % shape.parts][i] = Limits::quiet_NaN();
      before.gradients[i % shape.parts][i + 1] = i % 4 ? -Limits::infinity() : Limits::infinity();
      before.gradients[i % shape.parts][i + 2] = Limits::max();
      before.parameter[i + 3] = Limits::quiet_NaN();
      for (auto& gradient : before.gradients) gradient[i + 4] = Real{-0.0};
      before.state[i / 6 % 3][i + 5] = i % 4 ? Limits::quiet_NaN() : Limits::infinity();
    }
    for_each_set([&](const InstructionSet& set) {
      const Slice<Real> after = called(set, setting, before);
      check_result(setting, before, after, false);
      for (std::size_t i = 0; i < count; i += 3) CHECK(std::isnan(after.outputs[0][i]));
      for (std::size_t i = 1; i < count; i += 6) CHECK(!std::isfinite(after.outputs[0][i]));
    });
  });
}

template <class Real>
void check_norm() {
  for (const Shape& shape : shapes)
    for (const std::size_t count : counts)
      for_each_set([&](const InstructionSet& set) {
        Slice<Real> slice = slice_of<Real>(count, shape);
        const Array<Real> average = average_of(set, slice);
        double sums[16] = {};
        long double exact_sum = 0;
        for (std::size_t i = 0; i < count; ++i) {
          const double value = average[i];
          sums[i % 16] += value * value;
          exact_sum += static_cast<long double>(value) * value;
        }
        for (std::size_t half = 8; half > 0; half /= 2)
          for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
        // A product and the additions in one sum and of the sums.
        const long double most = (static_cast<long double>(count) / 16 + 6) * 0x1p-53L * exact_sum;
        CHECK(std::fabs(sums[0] - exact_sum) <= most);
        std::vector<const void*> inputs;
        for (const auto& gradient : slice.gradients) inputs.push_back(gradient.data());
        for (Array<Real>* output : {&slice.average, &slice.gradients.back()}) {
          CHECK_EQ(norm_kernel(set, dtype_of<Real>)(inputs.data(), static_cast<int>(inputs.size()), output->data(),
                                                    count, shape.divisor),
                   sums[0]);
          CHECK(same(*output, average));
        }
      });
}

}  // namespace

TEST("every rule and option, in float32") {
  check_rules<float>();
}

TEST("every rule and option, in float64") {
  check_rules<double>();
}

TEST("two calls on parts of a slice do what one does") {
  check_splits<float>();
  check_splits<double>();
}

TEST("nan and infinity reach the parameters") {
  check_specials<float>();
  check_specials<double>();
}

TEST("the average may go nowhere or into a part of the sum") {
  const Setting setting = all_settings().back();
  for_each_set([&](const InstructionSet& set) {
    const Slice<float> before = slice_of<float>(700, shapes[2]);
    const Slice<float> wanted = called(set, setting, before);
    Slice<float> slice = before;
    call<float>(set, setting, slice, 0, 700, nullptr);
    CHECK(same(slice.outputs[0], wanted.outputs[0]));
    Slice<float> aliased = before;
    call(set, setting, aliased, 0, 700, aliased.gradients[1].data());
    CHECK(same(aliased.outputs[0], wanted.outputs[0]));
    CHECK(same(aliased.gradients[1], wanted.average));
  });
}

TEST("the first step with momentum does not read the buffer") {
  Setting setting{Rule::sgd, {}};
  setting.rates.learning_rate = 0.5, setting.rates.momentum = 0.9, setting.rates.first = true;
  for_each_set([&](const InstructionSet& set) {
    Slice<float> slice = slice_of<float>(100, shapes[1]);
    slice.state[0].assign(100, std::numeric_limits<float>::quiet_NaN());
    CHECK(same(called(set, setting, slice).state[0], average_of(set, slice)));
  });
}

TEST("norms are sums of squares in one order, and averages those of the reduction") {
  check_norm<float>();
  check_norm<double>();
}

TEST("other dtypes are refused") {
  const InstructionSet& set = instruction_set("auto");
  for (const DTypeInfo& row : dtype_table) {
    if (row.dtype == DType::f32 || row.dtype == DType::f64) continue;
    for (const Rule rule : {Rule::sgd, Rule::adam, Rule::adamw})
      CHECK_THROWS(update_kernel(set, row.dtype, rule), "the dtype is " + std::string(row.name));
    CHECK_THROWS(norm_kernel(set, row.dtype), "take float32 or float64");
  }
}
