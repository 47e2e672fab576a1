#include "csrc/python/gradients.h"

#include <pybind11/stl.h>
#include <structmember.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/memory/pool.h"
#include "csrc/python/tensors.h"
#include "csrc/reduce/stream_copy.h"

namespace py = pybind11;

namespace ringred {
namespace {

// From here on a copy is worth letting other Python threads run.
constexpr std::size_t long_copy = std::size_t{1} << 20;

// One parameter's gradient in the current round.
struct Slot {
  int passes = 0;         // backward passes that have reached it
  bool complete = false;  // it must not change any more: `sent` and `version` tell what it was
  py::object sent;        // the gradient, or None
  std::uint64_t version = 0;
  int unit = 0;     // number of what it travels in
  py::object view;  // its place in a bucket, as a tensor; None: it travels from where it lies
  std::byte* place = nullptr;
  std::size_t bytes = 0;
  py::object layout{}, dtype{};  // of the view
  py::object keeper{};  // a second tensor of the place: what the view is to show again if its data was assigned
  bool contiguous = false, complex = false;
  bool pooled = false;  // it travels from where autograd has put it, if that is in the pool; the view comes when needed
  const std::byte* at = nullptr;  // where it lies there
};

struct Unit {
  std::vector<std::size_t> slots;
  std::size_t missing = 0;  // slots that are not complete
};

// Marks a gradient that travels from where it lies, so that no other optimizer takes it.
constexpr const char* claim = "_ringred_travels";

// Shared with the hooks, which parameters own: so it holds no parameter, or there would be cycles through torch that
// Python cannot collect.
struct State {
  std::vector<Slot> slots;
  std::vector<Unit> units;
  int passes = 1;
  bool paused = false;  // inside no_sync()
  bool clear = false;   // nothing has come since a round began
  bool closed = false;  // gradients are averages: one more backward pass is unusual
  py::object unusual;   // called with a slot's number before it counts a pass that it should not get
  py::object ready;     // called with a unit's number when its last slot is complete, and whether all of its slots are
  std::uintptr_t arena_begin = 0, arena_end = 0;  // a gradient that lies there belongs to somebody
  py::object strided;                             // torch.strided
  std::shared_ptr<Pool> pool;                     // null: no slot is pooled
  py::object make_view;                           // called with a pooled slot's number for its view
  std::size_t waiting = 0;                        // units with missing slots
  py::object move;  // called with (slot's number, gradient, place) for what cannot be copied as bytes
};

// Whether a gradient can be copied to its place as bytes. One that torch conjugates or negates as it reads cannot.
bool is_plain(const py::object& gradient, const Slot& slot) {
  return slot.contiguous && tensors::layout(gradient).is(slot.layout) && tensors::dtype(gradient).is(slot.dtype) &&
         tensors::is_contiguous(gradient) && !tensors::is_negative(gradient) &&
         !(slot.complex && tensors::is_conjugate(gradient));
}

void copy(std::byte* place, const std::byte* data, std::size_t bytes) {
  if (bytes < long_copy) {
    stream_copy(place, data, bytes);
    return;
  }
  const py::gil_scoped_release unlocked;
  stream_copy(place, data, bytes);
}

// Takes note of the gradient, which is in its place by now.
void complete(State& state, Slot& slot, py::object gradient) {
  state.clear = false;
  slot.version = gradient.is_none() ? 0 : tensors::version(gradient);
  slot.sent = std::move(gradient);
  slot.complete = true;
}

// Whether a gradient is a part of something, as those of stacked parameters are. These have one version together: to
// accumulate into one of them looks like a change of all. One that travels for another optimizer is left alone.
bool is_part(const State& state, const py::object& gradient) {
  return tensors::layout(gradient).is(state.strided) && tensors::is_part(gradient) && !py::hasattr(gradient, claim);
}

bool is_elsewhere(const Slot& slot) {
  return !slot.view.is_none() && tensors::address(slot.view) != slot.place;
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
  return slot.pooled && is_plain(gradient, slot) && state.pool->holds(tensors::address(gradient), slot.bytes) &&
         !tensors::requires_grad(gradient.ptr()) && tensors::is_alone(gradient) && !py::hasattr(gradient, claim);
}

void set_view(Slot& slot, py::object view) {
  slot.view = std::move(view);
  slot.place = tensors::address(slot.view);
  slot.keeper = slot.view.attr("data");
}

void ensure_view(State& state, std::size_t number) {
  if (!state.slots[number].pooled || !state.slots[number].view.is_none()) return;
  py::object view = state.make_view(number);
  set_view(state.slots[number], std::move(view));
}

// Gives up the mark of a gradient in the pool.
void unclaim(Slot& slot) {
  if (slot.at == nullptr) return;
  slot.at = nullptr;
  if (py::hasattr(slot.sent, claim)) py::delattr(slot.sent, claim);
}

// Has a gradient in its place: where it is in the pool, or in the bucket, which then is the parameter's gradient.
void settle(State& state, std::size_t number, PyObject* parameter) {
  py::object gradient = tensors::grad(parameter);
  if (!gradient.is_none() && is_in_pool(state, state.slots[number], gradient)) {
    py::setattr(gradient, claim, py::bool_(true));
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
  if (!gradient.is(view)) {
    if (is_plain(gradient, state.slots[number])) {
      Slot& slot = state.slots[number];
      const std::byte* data = tensors::address(gradient);
      if (data != slot.place) {
        const auto address = reinterpret_cast<std::uintptr_t>(data);
        if (address >= state.arena_begin && address < state.arena_end)
          state.move(number, gradient, view);
        else
          copy(slot.place, data, slot.bytes);
      }
    } else {
      state.move(number, gradient, view);
    }
    tensors::set_grad(parameter, view);
  }
  complete(state, state.slots[number], view);
}

void arrive(State& state, std::size_t number, PyObject* parameter) {
  if (const Slot& slot = state.slots[number]; state.closed || slot.complete || slot.passes >= state.passes)
    state.unusual(number);
  if (state.paused) return;
  state.clear = false;
  if (state.pool && state.waiting > 0) state.pool->arm(true);
  Slot& slot = state.slots[number];
  if (++slot.passes < state.passes) return;
  settle(state, number, parameter);
  Unit& unit = state.units.at(static_cast<std::size_t>(slot.unit));
  if (unit.missing == 0 || --unit.missing > 0) return;
  if (--state.waiting == 0 && state.pool) state.pool->arm(false);
  bool all = true;
  for (const std::size_t member : unit.slots) all = all && state.slots[member].complete;
  state.ready(state.slots[number].unit, all);
}

// The hook of one parameter. torch calls it with the parameter.
struct Hook {
  PyObject_HEAD vectorcallfunc call;
  std::shared_ptr<State>* state;
  std::size_t number;
};

PyObject* call_hook(PyObject* self, PyObject* const* arguments, std::size_t count, PyObject* names) {
  auto* hook = reinterpret_cast<Hook*>(self);
  if (PyVectorcall_NARGS(count) != 1 || (names != nullptr && PyTuple_GET_SIZE(names) != 0)) {
    PyErr_SetString(PyExc_TypeError, "a gradient hook is called with its parameter");
    return nullptr;
  }
  try {
    const std::shared_ptr<State> state = *hook->state;
    arrive(*state, hook->number, arguments[0]);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

void destroy_hook(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<Hook*>(self)->state;
  type->tp_free(self);
  Py_DECREF(type);
}

PyTypeObject* hook_type() {
  static PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(Hook, call), READONLY, nullptr},
                                  {nullptr, 0, 0, 0, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(destroy_hook)},
                                {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                {Py_tp_members, members},
                                {0, nullptr}};
  static PyType_Spec spec = {"ringred._core.GradientHook", sizeof(Hook), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, slots};
  static auto* type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  if (type == nullptr) throw py::error_already_set();
  return type;
}

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
    PyTypeObject* type = hook_type();
    auto* hook = reinterpret_cast<Hook*>(type->tp_alloc(type, 0));
    if (hook == nullptr) throw py::error_already_set();
    hook->call = call_hook;
    hook->state = new std::shared_ptr<State>(state_);
    hook->number = number;
    return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(hook));
  }

  // `units` lists the slots of each, every slot once; `views` the places of the slots in buckets, or None. Those of
  // `pooled`, which have no view yet, travel from where they lie in the pool; `make_view` makes the view of one.
  void arrange(const std::vector<std::vector<std::size_t>>& units, const py::list& views,
               std::pair<std::uintptr_t, std::uintptr_t> arena, std::shared_ptr<Pool> pool,
               const std::vector<std::size_t>& pooled, py::object make_view) {
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
      set_view(slot, slot.view);
    }
    for (const std::size_t number : pooled) {
      if (!pool || !slots.at(number).view.is_none())
        throw std::invalid_argument("a pooled slot has a pool and no view");
      describe(slots[number], parameters_.at(number));
      slots[number].pooled = true;
    }
    for (Slot& slot : state.slots) unclaim(slot);
    state.pool = std::move(pool);
    state.make_view = std::move(make_view);
    state.slots.swap(slots);
    std::tie(state.arena_begin, state.arena_end) = arena;
    state.units.clear();
    for (const auto& members : units) state.units.push_back({members, 0});
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
          unclaim(slot);
          slot.sent = py::none();
        }
        unit.missing += tensors::requires_grad(parameters_[number].ptr()) ? 1u : 0u;
      }
      state.waiting += unit.missing > 0 ? 1u : 0u;
    }
    state.clear = true;
  }

  // Counts a pass like the hook of `number`.
  void arrive(std::size_t number) { ringred::arrive(*state_, number, parameters_.at(number).ptr()); }

  // Completes the slots of a unit with the gradients that there are, in their places. Where there is none, or the own
  // ones are not wanted, the place holds zeros.
  void fill(std::size_t unit, bool own) {
    const std::vector<std::size_t> members = state_->units.at(unit).slots;
    for (const std::size_t number : members) {
      if (own && !state_->slots[number].complete) settle(*state_, number, parameters_[number].ptr());
      if (own && !state_->slots[number].sent.is_none()) continue;
      ensure_view(*state_, number);
      if (is_elsewhere(state_->slots[number])) bring_back(*state_, number, py::none());
      std::memset(state_->slots[number].place, 0, state_->slots[number].bytes);
    }
  }

  // Makes the places the gradients of those parameters that have none, for which `kinds` is not zero.
  void deliver(std::size_t unit, const std::string& kinds) {
    const std::vector<std::size_t> members = state_->units.at(unit).slots;
    for (const std::size_t number : members) {
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
    ringred::complete(*state_, state_->slots.at(number), tensors::grad(parameters_.at(number).ptr()));
  }

  // The first slot whose gradient has changed since it was complete; -1: none.
  int first_changed() const {
    for (std::size_t number = 0; number < parameters_.size(); ++number) {
      const Slot& slot = state_->slots[number];
      if (!slot.complete) continue;
      const py::object gradient = tensors::grad(parameters_[number].ptr());
      if (!gradient.is(slot.sent) || (!gradient.is_none() && tensors::version(gradient) != slot.version) ||
          (gradient.is(slot.view) && is_elsewhere(slot)) ||
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
      const bool dense = gradient.is(slot.view) || tensors::layout(gradient).is(strided_);
      all[number] = dense ? 1 : 2;
    }
    return all;
  }

  // The units all of whose slots are complete.
  std::vector<std::size_t> complete_units() const {
    std::vector<std::size_t> found;
    for (std::size_t number = 0; number < state_->units.size(); ++number) {
      const std::vector<std::size_t>& members = state_->units[number].slots;
      if (std::all_of(members.begin(), members.end(),
                      [this](std::size_t slot) { return state_->slots[slot].complete; }))
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
  // What a slot's gradients have to be like to travel as bytes: like this tensor.
  static void describe(Slot& slot, const py::object& like) {
    slot.bytes = like.attr("nbytes").cast<std::size_t>();
    slot.layout = like.attr("layout");
    slot.dtype = like.attr("dtype");
    slot.contiguous = like.attr("is_contiguous")().cast<bool>();
    slot.complex = like.attr("is_complex")().cast<bool>();
  }

  std::vector<py::object> parameters_;
  const py::object strided_ = py::module_::import("torch").attr("strided");
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace

void bind_gradients(py::module_& module) {
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
      .def("hook", &Gradients::hook, py::arg("number"))
      .def("arrange", &Gradients::arrange, py::arg("units"), py::arg("views"), py::arg("arena"),
           py::arg("pool") = nullptr, py::arg("pooled") = std::vector<std::size_t>{}, py::arg("make_view") = py::none())
      .def("expect", &Gradients::expect)
      .def("clear", &Gradients::clear)
      .def("arrive", &Gradients::arrive, py::arg("number"))
      .def("fill", &Gradients::fill, py::arg("unit"), py::arg("own"))
      .def("deliver", &Gradients::deliver, py::arg("unit"), py::arg("kinds"))
      .def("complete", &Gradients::complete, py::arg("number"))
      .def("complete_all", &Gradients::complete_all)
      .def("first_changed", &Gradients::first_changed)
      .def("kinds", &Gradients::kinds, py::arg("started"), py::arg("own"))
      .def("complete_units", &Gradients::complete_units)
      .def("pending", &Gradients::pending)
      .def("is_through", &Gradients::is_through, py::arg("number"))
      .def("passes_of", &Gradients::passes_of, py::arg("number"))
      .def("sent", &Gradients::sent, py::arg("number"));
}

}  // namespace ringred
