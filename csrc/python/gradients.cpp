#include "csrc/python/gradients.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "csrc/memory/pool.h"
#include "csrc/python/gradient_hook.h"
#include "csrc/python/gradient_slots.h"
#include "csrc/python/tensors.h"

namespace py = pybind11;

namespace ringred {
namespace {

using gradients::Slot;
using gradients::State;
using gradients::Unit;

class Gradients {
 public:
  Gradients(const py::list& parameters, py::object unusual, py::object ready, py::object move) {
    for (const py::handle parameter : parameters) {
      parameters_.push_back(py::reinterpret_borrow<py::object>(parameter));
      state_->slots.emplace_back();
      state_->slots.back().sent = state_->slots.back().view = py::none();
    }
    state_->unusual = std::move(unusual);
    state_->ready = std::move(ready);
    state_->move = std::move(move);
    state_->strided = strided_;
  }

  py::object hook(std::size_t number) const {
    static_cast<void>(state_->slots.at(number));
    return gradients::make_hook(state_, number);
  }

  // `units` lists the slots of each, every slot once; `views` the places of the slots in buckets, or None. Those of
  // `pooled`, which have no view yet, travel from where they lie in the pool; `make_view` makes the view of one. Units
  // of `late` are not waited for in the backward pass.
  void arrange(const std::vector<std::vector<std::size_t>>& units, const py::list& views, std::shared_ptr<Pool> pool,
               const std::vector<std::size_t>& pooled, py::object make_view, const std::vector<std::size_t>& late) {
    State& state = *state_;
    std::vector<int> unit_of(state.slots.size(), -1);
    for (std::size_t unit = 0; unit < units.size(); ++unit)
      for (const std::size_t number : units[unit])
        if (std::exchange(unit_of.at(number), static_cast<int>(unit)) >= 0)
          throw std::invalid_argument("a slot is in two units");
    if (std::count(unit_of.begin(), unit_of.end(), -1) != 0) throw std::invalid_argument("a slot is in no unit");
    if (views.size() != state.slots.size()) throw std::invalid_argument("there must be a view or None for each slot");
    std::vector<Slot> slots(state.slots.size());
    for (std::size_t number = 0; number < slots.size(); ++number) {
      Slot& slot = slots[number];
      slot.unit = unit_of[number];
      slot.sent = py::none();
      slot.view = py::reinterpret_borrow<py::object>(views[number]);
      if (slot.view.is_none()) continue;
      describe(slot, slot.view);
      gradients::set_view(slot, slot.view);
    }
    for (const std::size_t number : pooled) {
      if (!pool || !slots.at(number).view.is_none())
        throw std::invalid_argument("a pooled slot has a pool and no view");
      describe(slots[number], parameters_.at(number));
      slots[number].pooled = true;
    }
    state.pool = std::move(pool);
    state.make_view = std::move(make_view);
    state.slots.swap(slots);
    state.units.clear();
    for (const auto& members : units) state.units.push_back({members});
    for (const std::size_t unit : late) state.units.at(unit).late = true;
    clear();
  }

  // Gradients are to come: let autograd take memory of the pool.
  void expect() {
    if (state_->pool && state_->waiting > 0) state_->pool->arm(true);
  }

  // A new round.
  void clear() {
    State& state = *state_;
    if (state.pool) state.pool->arm(false);
    state.waiting = 0;
    for (Unit& unit : state.units) {
      unit.missing = 0;  // parameters may have been frozen since
      for (const std::size_t number : unit.slots) {
        if (Slot& slot = state.slots[number]; !state.clear) {
          slot.passes = 0;
          slot.complete = false;
          slot.origin = nullptr;
          slot.at = nullptr;
          slot.sent = py::none();
        }
        if (!unit.late) unit.missing += tensors::requires_grad(parameters_[number].ptr()) ? 1u : 0u;
      }
      state.waiting += unit.missing > 0 ? 1u : 0u;
    }
    state.clear = true;
  }

  // Counts a pass like the hook of `number`.
  void arrive(std::size_t number) { gradients::arrive(*state_, number, parameters_.at(number).ptr()); }

  // Completes the slots of a unit with the gradients that there are, in their places. Where there is none, or the own
  // ones are not wanted, the place holds zeros.
  void fill(std::size_t unit, bool own) {
    const std::vector<std::size_t> members = state_->units.at(unit).slots;
    const bool late = state_->units[unit].late;
    for (const std::size_t number : members) {
      if (own && !state_->slots[number].complete)
        (late ? gradients::pack : gradients::settle)(*state_, number, parameters_[number].ptr());
      if (!own || state_->slots[number].sent.is_none()) gradients::put_zeros(*state_, number);
    }
    if (own && late) separate(members);
  }

  // Copies averages to the gradients that were copied, and makes the places the gradients of those parameters that have
  // none, for which `kinds` is not zero.
  void deliver(std::size_t unit, const std::string& kinds) {
    const std::vector<std::size_t> members = state_->units.at(unit).slots;
    for (const std::size_t number : members) {
      if (const Slot& slot = state_->slots[number]; slot.origin != nullptr)
        std::memcpy(slot.origin, slot.place, slot.bytes);
      if (!state_->slots[number].sent.is_none()) continue;  // it is its place already
      PyObject* parameter = parameters_[number].ptr();
      if (kinds.at(number) != 0 && tensors::grad(parameter).is_none())
        tensors::set_grad(parameter, state_->slots[number].view);
    }
  }

  // Takes note of all gradients as they are.
  void complete_all() {
    for (std::size_t number = 0; number < parameters_.size(); ++number) complete(number);
  }
  void complete(std::size_t number) {
    gradients::complete(*state_, state_->slots.at(number), tensors::grad(parameters_.at(number).ptr()));
  }

  // The first slot whose gradient has changed since it was complete; -1: none.
  int first_changed() const {
    for (std::size_t number = 0; number < parameters_.size(); ++number) {
      const Slot& slot = state_->slots[number];
      if (!slot.complete) continue;
      const py::object gradient = tensors::grad(parameters_[number].ptr());
      if (!gradient.is(slot.sent) || (!gradient.is_none() && tensors::version(gradient) != slot.version) ||
          (gradient.is(slot.view) && gradients::is_elsewhere(slot)) ||
          (slot.at != nullptr && tensors::address(gradient) != slot.at))
        return static_cast<int>(number);
    }
    return -1;
  }

  // By slot: 0 where the parameter has no gradient, 1 for a dense one, 2 for others. `started` tells of each unit
  // whether what was complete is on its way already; without `own` all others count as none.
  py::bytes kinds(const std::vector<bool>& started, bool own) const {
    std::string all(parameters_.size(), '\0');
    for (std::size_t number = 0; number < parameters_.size(); ++number) {
      const Slot& slot = state_->slots[number];
      const bool sent = started.at(static_cast<std::size_t>(slot.unit));
      if (!sent && !own) continue;
      const py::object gradient = sent ? slot.sent : tensors::grad(parameters_[number].ptr());
      if (gradient.is_none()) continue;
      const bool dense = slot.origin != nullptr || gradient.is(slot.view) || tensors::layout(gradient).is(strided_);
      all[number] = dense ? 1 : 2;
    }
    return all;
  }

  // The units that travel in this round, whatever other ranks have: those whose slots are all complete, and late ones
  // with a gradient.
  std::vector<std::size_t> ready_units() const {
    const auto is_complete = [this](std::size_t slot) { return state_->slots[slot].complete; };
    const auto has_gradient = [this](std::size_t slot) { return !tensors::grad(parameters_[slot].ptr()).is_none(); };
    std::vector<std::size_t> found;
    for (std::size_t number = 0; number < state_->units.size(); ++number) {
      const auto& [members, late, missing] = state_->units[number];
      if (late ? std::any_of(members.begin(), members.end(), has_gradient)
               : std::all_of(members.begin(), members.end(), is_complete))
        found.push_back(number);
    }
    return found;
  }

  // Whether some slot has got all its passes.
  bool pending() const {
    for (const Slot& slot : state_->slots)
      if (slot.passes >= state_->passes) return true;
    return false;
  }

  // Whether the slot has got all passes that it can get.
  bool is_through(std::size_t number) const {
    return state_->slots.at(number).passes >= state_->passes || !tensors::requires_grad(parameters_.at(number).ptr());
  }

  int passes_of(std::size_t number) const { return state_->slots.at(number).passes; }
  py::object sent(std::size_t number) const { return state_->slots.at(number).sent; }
  State& state() const { return *state_; }

 private:
  // Autograd lets gradients share memory, as those of a.view(-1) + b.view(-1): an average can be copied back to one of
  // them only. The others are replaced by their places.
  void separate(std::vector<std::size_t> members) {
    const auto& slots = state_->slots;
    std::erase_if(members, [&](std::size_t number) { return slots[number].origin == nullptr; });
    std::sort(members.begin(), members.end(),
              [&](std::size_t a, std::size_t b) { return std::less<>()(slots[a].origin, slots[b].origin); });
    std::vector<std::size_t> shared;
    const std::byte* end = nullptr;
    for (const std::size_t number : members) {
      if (end != nullptr && std::less<>()(slots[number].origin, end) && slots[number].bytes > 0)
        shared.push_back(number);
      end = std::max(end, static_cast<const std::byte*>(slots[number].origin + slots[number].bytes), std::less<>());
    }
    for (const std::size_t number : shared) {
      state_->slots[number].origin = nullptr;
      gradients::settle(*state_, number, parameters_[number].ptr());
    }
  }

  // What a slot's gradients have to be like to travel as bytes: like this tensor.
  static void describe(Slot& slot, const py::object& like) {
    slot.bytes = like.attr("nbytes").cast<std::size_t>();
    slot.layout = like.attr("layout");
    slot.dtype = like.attr("dtype");
    if (dlpack::Tensor found; tensors::describe(like.attr("detach")(), found)) slot.type = found.dtype;
    slot.contiguous = like.attr("is_contiguous")().cast<bool>();
    slot.complex = like.attr("is_complex")().cast<bool>();
  }

  std::vector<py::object> parameters_;
  const py::object strided_ = py::module_::import("torch").attr("strided");
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace

void bind_gradients(py::module_& module) {
  module.def("has_own_memory", &tensors::is_alone, py::arg("tensor"),
             "Whether no other tensor has the memory of this one; False where torch does not tell.");
  py::class_<Gradients>(module, "Gradients")
      .def(py::init<py::list, py::object, py::object, py::object>(), py::arg("parameters"), py::arg("unusual"),
           py::arg("ready"), py::arg("move"))
      .def_property(
          "passes", [](const Gradients& self) { return self.state().passes; },
          [](Gradients& self, int passes) { self.state().passes = passes; })
      .def_property(
          "paused", [](const Gradients& self) { return self.state().paused; },
          [](Gradients& self, bool paused) { self.state().paused = paused; })
      .def_property(
          "closed", [](const Gradients& self) { return self.state().closed; },
          [](Gradients& self, bool closed) { self.state().closed = closed; })
      .def_property(
          "sums", [](const Gradients& self) { return self.state().sums; },
          [](Gradients& self, bool sums) { self.state().sums = sums; })
      .def_property_readonly("began", [](const Gradients& self) { return self.state().began; })
      .def("hook", &Gradients::hook, py::arg("number"))
      .def("arrange", &Gradients::arrange, py::arg("units"), py::arg("views"), py::arg("pool") = nullptr,
           py::arg("pooled") = std::vector<std::size_t>{}, py::arg("make_view") = py::none(),
           py::arg("late") = std::vector<std::size_t>{})
      .def("expect", &Gradients::expect)
      .def("clear", &Gradients::clear)
      .def("arrive", &Gradients::arrive, py::arg("number"))
      .def("fill", &Gradients::fill, py::arg("unit"), py::arg("own"))
      .def("deliver", &Gradients::deliver, py::arg("unit"), py::arg("kinds"))
      .def("complete", &Gradients::complete, py::arg("number"))
      .def("complete_all", &Gradients::complete_all)
      .def("first_changed", &Gradients::first_changed)
      .def("kinds", &Gradients::kinds, py::arg("started"), py::arg("own"))
      .def("ready_units", &Gradients::ready_units)
      .def("pending", &Gradients::pending)
      .def("is_through", &Gradients::is_through, py::arg("number"))
      .def("passes_of", &Gradients::passes_of, py::arg("number"))
      .def("sent", &Gradients::sent, py::arg("number"));
}

}  // namespace ringred
