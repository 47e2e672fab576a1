// Steps of optimizers on the device: every rule and option gives the bits of the CPU's kernel, at any alignment, and
// what is not in use is neither read nor written.
#include "csrc/cuda/update.h"

#include "csrc/reduce/reduce.h"
#include "tests/cuda/device.h"
#include "tests/local/update_call.h"

namespace ringred::cuda {
namespace {

using reference::all_settings;
using reference::dtype_of;
using reference::same;
using reference::Setting;
using reference::Shape;
using reference::shapes;
using reference::Slice;
using reference::slice_of;
using reference::uses_state;

// The arrays of a slice in device memory, each `shift` elements behind a multiple of 16 bytes.
template <class Real>
struct OnDevice {
  std::vector<DeviceArray<Real>> gradients, outputs, state;
  DeviceArray<Real> parameter, average;
  UpdateSlice slice{};

  OnDevice(const Setting& setting, const Slice<Real>& host, std::size_t shift)
      : parameter(host.parameter, shift * sizeof(Real)), average(host.average, shift * sizeof(Real)) {
    const std::size_t bytes = shift * sizeof(Real);
    for (const auto& gradient : host.gradients) gradients.emplace_back(gradient, bytes);
    for (const auto& output : host.outputs) outputs.emplace_back(output, bytes);
    for (const auto& array : host.state) state.emplace_back(array, bytes);
    slice.gradient_count = static_cast<int>(gradients.size());
    slice.output_count = static_cast<int>(outputs.size());
    for (std::size_t k = 0; k < gradients.size(); ++k) slice.gradients[k] = gradients[k].data();
    for (std::size_t k = 0; k < outputs.size(); ++k) slice.outputs[k] = outputs[k].data();
    for (int k = 0; k < 3; ++k)
      if (uses_state(setting, k)) slice.state[k] = state[static_cast<std::size_t>(k)].data();
    slice.parameter = parameter.data();
    slice.average = average.data();
    if (host.shape.in_place < outputs.size()) slice.outputs[host.shape.in_place] = parameter.data();
  }

  void read(Slice<Real>& host) const {
    host.parameter = parameter.read();
    host.average = average.read();
    for (std::size_t k = 0; k < outputs.size(); ++k) host.outputs[k] = outputs[k].read();
    if (host.shape.in_place < outputs.size()) host.outputs[host.shape.in_place] = host.parameter;
    for (std::size_t k = 0; k < 3; ++k) host.state[k] = state[k].read();
    for (std::size_t k = 0; k < gradients.size(); ++k) CHECK(same(gradients[k].read(), host.gradients[k]));
  }
};

template <class Real>
Slice<Real> on_device(const Setting& setting, Slice<Real> host, std::size_t shift) {
  const OnDevice<Real> arrays(setting, host, shift);
  update(arrays.slice, host.parameter.size(), dtype_of<Real>, setting.rule, setting.rates, host.shape.divisor,
         host.shape.factor, nullptr);
  finish();
  arrays.read(host);
  return host;
}

template <class Real>
void check_rules() {
  const std::size_t counts[] = {1, 3, 4, 5, 255, 700};
  std::size_t number = 0;
  for (const Shape& shape : shapes)
    for (const Setting& setting : all_settings()) {
      const std::size_t count = counts[number % 6], shift = number % 4;
      ++number;
      const Slice<Real> before = slice_of<Real>(count, shape);
      const Slice<Real> want = reference::called(instruction_set("auto"), setting, before);
      CHECK(on_device(setting, before, shift) == want);
    }
}

TEST("every rule and option, in float32") {
  check_rules<float>();
}

TEST("every rule and option, in float64") {
  check_rules<double>();
}

TEST("more elements than threads of the device") {
  const Setting setting = all_settings().back();
  const Slice<float> before = slice_of<float>(100003, shapes[3]);
  CHECK(on_device(setting, before, 1) == reference::called(instruction_set("auto"), setting, before));
}

TEST("nan and infinity reach the parameters") {
  for (const Setting& setting : all_settings()) {
    Slice<float> before = slice_of<float>(64, shapes[1]);
    before.gradients[0][3] = before.parameter[9] = std::numeric_limits<float>::quiet_NaN();
    before.gradients[1][17] = before.state[0][30] = std::numeric_limits<float>::infinity();
    before.state[1][31] = 0;
    CHECK(on_device(setting, before, 0) == reference::called(instruction_set("auto"), setting, before));
  }
}

TEST("the average may go nowhere or into a part of the sum") {
  const Setting setting = all_settings().back();
  const Slice<float> before = slice_of<float>(700, shapes[2]);
  const Slice<float> want = reference::called(instruction_set("auto"), setting, before);
  OnDevice<float> arrays(setting, before, 0);
  arrays.slice.average = const_cast<void*>(arrays.slice.gradients[1]);
  update(arrays.slice, 700, DType::f32, setting.rule, setting.rates, 3, before.shape.factor, nullptr);
  finish();
  CHECK(same(arrays.gradients[1].read(), want.average));
  CHECK(same(arrays.outputs[0].read(), want.outputs[0]));
  OnDevice<float> nowhere(setting, before, 0);
  nowhere.slice.average = nullptr;
  update(nowhere.slice, 700, DType::f32, setting.rule, setting.rates, 3, before.shape.factor, nullptr);
  finish();
  CHECK(same(nowhere.average.read(), before.average));
  CHECK(same(nowhere.outputs[0].read(), want.outputs[0]));
}

TEST("wrong arguments are refused") {
  const Setting setting = all_settings().back();
  const Slice<float> host = slice_of<float>(8, shapes[0]);
  const OnDevice<float> arrays(setting, host, 0);
  const auto step = [&](UpdateSlice slice, DType dtype, std::int64_t divisor) {
    update(slice, 8, dtype, setting.rule, setting.rates, divisor, 1, nullptr);
  };
  CHECK_THROWS(step(arrays.slice, DType::bf16, 1), "the dtype is bfloat16");
  CHECK_THROWS(step(arrays.slice, DType::f32, 0), "the divisor is 0");
  UpdateSlice slice = arrays.slice;
  slice.state[1] = nullptr;
  CHECK_THROWS(step(slice, DType::f32, 1), "state 1 (float32) is at 0");
  slice = arrays.slice;
  slice.gradient_count = 0;
  CHECK_THROWS(step(slice, DType::f32, 1), "it has 0 and 1");
  slice = arrays.slice;
  slice.parameter = reinterpret_cast<const char*>(slice.parameter) + 1;
  CHECK_THROWS(step(slice, DType::f32, 1), "parameter 0 (float32)");
}

}  // namespace
}  // namespace ringred::cuda
