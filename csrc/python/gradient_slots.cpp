#include "csrc/python/gradient_slots.h"

#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include "csrc/python/tensors.h"
#include "csrc/reduce/stream_copy.h"

namespace ringred::gradients {
namespace {

// From here on a copy is worth letting other Python threads run.
constexpr std::size_t long_copy = std::size_t{1} << 20;

bool is_contiguous(const dlpack::Tensor& tensor) {
  std::int64_t stride = 1;
  for (std::int32_t i = tensor.dimensions; tensor.strides != nullptr && i-- > 0;) {
    if (tensor.shape[i] == 0) return true;
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
    stride *= tensor.shape[i];
  }
  return true;
}

std::size_t bytes_of(const dlpack::Tensor& tensor) {
  std::size_t elements = 1;
  for (std::int32_t i = 0; i < tensor.dimensions; ++i) elements *= static_cast<std::size_t>(tensor.shape[i]);
  return elements * tensor.dtype.bits / 8;
}

// Where a gradient lies that can be copied to its place as bytes. One that torch conjugates or negates as it reads
// cannot, nor one whose parameter has been resized.
std::optional<std::byte*> plain_bytes(const py::object& gradient, const Slot& slot) {
  if (!slot.contiguous) return std::nullopt;
  std::byte* data = nullptr;
  if (dlpack::Tensor found; slot.type.bits > 0 && tensors::describe(gradient, found)) {
    if (found.device.type != dlpack::cpu || found.dtype != slot.type || !is_contiguous(found) ||
        bytes_of(found) != slot.bytes)
      return std::nullopt;
    data = static_cast<std::byte*>(found.data) + found.byte_offset;
  } else {
    if (!tensors::layout(gradient).is(slot.layout) || !tensors::dtype(gradient).is(slot.dtype) ||
        !tensors::is_contiguous(gradient) || tensors::bytes(gradient) != slot.bytes)
      return std::nullopt;
    data = tensors::address(gradient);
  }
  if (tensors::is_negative(gradient) || (slot.complex && tensors::is_conjugate(gradient))) return std::nullopt;
  return data;
}

void copy_bytes(std::byte* place, const std::byte* data, std::size_t bytes) {
  if (bytes < long_copy) {
    stream_copy(place, data, bytes);
    return;
  }
  const py::gil_scoped_release unlocked;
  stream_copy(place, data, bytes);
}

// Whether a gradient is a part of something, as those of stacked parameters are. These have one version together: to
// accumulate into one of them looks like a change of all.
bool is_part(const State& state, const py::object& gradient) {
  return tensors::layout(gradient).is(state.strided) && tensors::is_part(gradient);
}

// Has the view show its place again, after somebody has assigned its `data`; what was assigned goes there if it is the
// gradient.
void bring_back(State& state, std::size_t number, const py::object& gradient) {
  const py::object view = state.slots[number].view;
  const py::object assigned = tensors::data(view);
  tensors::set_data(view, state.slots[number].keeper);
  if (gradient.is(view)) state.move(number, assigned, view);
}

// Whether a gradient can be reduced where autograd has put it: in a block of the pool that is its alone.
bool is_in_pool(const State& state, const Slot& slot, const py::object& gradient) {
  if (!slot.pooled) return false;
  const std::optional<std::byte*> data = plain_bytes(gradient, slot);
  return data && state.pool->holds(*data, slot.bytes) && !tensors::requires_grad(gradient.ptr()) &&
         tensors::is_alone(gradient);
}

void ensure_view(State& state, std::size_t number) {
  if (!state.slots[number].pooled || !state.slots[number].view.is_none()) return;
  py::object view = state.make_view(number);
  set_view(state.slots[number], std::move(view));
}

// Brings a gradient to its place, which then is the parameter's gradient.
void bring(State& state, std::size_t number, PyObject* parameter, const py::object& gradient) {
  const Slot& slot = state.slots[number];
  const py::object view = slot.view;
  const std::optional<std::byte*> data = plain_bytes(gradient, slot);
  if (!data) {
    state.move(number, gradient, view);
  } else if (*data != slot.place) {
    copy_bytes(slot.place, *data, slot.bytes);
  }
  tensors::set_grad(parameter, view);
}

}  // namespace

void complete(State& state, Slot& slot, py::object gradient) {
  state.clear = false;
  slot.version = gradient.is_none() ? 0 : tensors::version(gradient);
  slot.sent = std::move(gradient);
  slot.complete = true;
}

bool is_elsewhere(const Slot& slot) {
  return !slot.view.is_none() && tensors::address(slot.view) != slot.place;
}

void set_view(Slot& slot, py::object view) {
  slot.view = std::move(view);
  slot.place = tensors::address(slot.view);
  slot.keeper = slot.view.attr("data");
}

void settle(State& state, std::size_t number, PyObject* parameter) {
  py::object gradient = tensors::grad(parameter);
  if (!gradient.is_none() && is_in_pool(state, state.slots[number], gradient)) {
    state.slots[number].at = tensors::address(gradient);
    return complete(state, state.slots[number], std::move(gradient));
  }
  if (!gradient.is_none()) ensure_view(state, number);
  const py::object view = state.slots[number].view;
  if (is_elsewhere(state.slots[number])) bring_back(state, number, gradient);
  if (view.is_none() && !gradient.is_none() && is_part(state, gradient)) {
    gradient = tensors::data(gradient);  // with a version of its own
    tensors::set_grad(parameter, gradient);
  }
  if (view.is_none() || gradient.is_none()) return complete(state, state.slots[number], std::move(gradient));
  if (!gradient.is(view)) bring(state, number, parameter, gradient);
  complete(state, state.slots[number], view);
}

void pack(State& state, std::size_t number, PyObject* parameter) {
  Slot& slot = state.slots[number];
  py::object gradient = tensors::grad(parameter);
  const bool known = gradient.is_none() || gradient.is(slot.view) || tensors::requires_grad(gradient.ptr());
  const std::optional<std::byte*> data = known ? std::nullopt : plain_bytes(gradient, slot);
  if (!data || (state.sums && !tensors::is_alone(gradient))) return settle(state, number, parameter);
  slot.origin = *data;
  std::memcpy(slot.place, *data, slot.bytes);
  complete(state, slot, std::move(gradient));
}

void put_zeros(State& state, std::size_t number) {
  ensure_view(state, number);
  if (is_elsewhere(state.slots[number])) bring_back(state, number, py::none());
  std::memset(state.slots[number].place, 0, state.slots[number].bytes);
}

void arrive(State& state, std::size_t number, PyObject* parameter) {
  if (const Slot& slot = state.slots[number]; state.closed || slot.complete || slot.passes >= state.passes)
    state.unusual(number);
  if (state.paused) return;
  if (std::exchange(state.clear, false))
    state.began = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  if (state.pool && state.waiting > 0) state.pool->arm(true);
  Slot& slot = state.slots[number];
  Unit& unit = state.units.at(static_cast<std::size_t>(slot.unit));
  if (++slot.passes < state.passes || unit.late) return;
  settle(state, number, parameter);
  if (unit.missing == 0 || --unit.missing > 0) return;
  if (--state.waiting == 0 && state.pool) state.pool->arm(false);
  bool all = true;
  for (const std::size_t member : unit.slots) all = all && state.slots[member].complete;
  state.ready(state.slots[number].unit, all);
}

}  // namespace ringred::gradients
