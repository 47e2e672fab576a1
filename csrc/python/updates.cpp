#include "csrc/python/updates.h"

#include <pybind11/stl.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/python/arrays.h"
#include "csrc/python/python_engine.h"
#include "csrc/python/result.h"
#include "csrc/queue/nodes.h"
#include "csrc/queue/parts.h"

namespace py = pybind11;

namespace ringred {
namespace {

using EnginePointer = std::shared_ptr<PythonEngine>;

Rule rule_named(const std::string& name) {
  if (name == "SGD") return Rule::sgd;
  if (name == "Adam") return Rule::adam;
  if (name == "AdamW") return Rule::adamw;
  fail_usage("There are fused steps of SGD, Adam and AdamW: not of " + name + ".");
}

Rates rates_of(const py::dict& numbers) {
  const auto number = [&](const char* key) { return numbers.contains(key) ? numbers[key].cast<double>() : 0; };
  const auto flag = [&](const char* key) { return numbers.contains(key) && numbers[key].cast<bool>(); };
  Rates rates{};
  rates.learning_rate = number("lr");
  rates.weight_decay = number("weight_decay");
  rates.momentum = number("momentum");
  rates.dampening = number("dampening");
  rates.beta1 = number("beta1");
  rates.beta2 = number("beta2");
  rates.epsilon = number("eps");
  rates.step = number("step");
  rates.nesterov = flag("nesterov");
  rates.maximize = flag("maximize");
  rates.amsgrad = flag("amsgrad");
  rates.first = flag("first");
  return rates;
}

// What stays the same from step to step: where the parameters and this rank's part of the state lie.
struct UpdatePlan {
  // `places` are pairs (rank of the world, offset in its segment), one for each member of this node or, if they share
  // it, one.
  UpdatePlan(EnginePointer owner, std::string_view rule_name, const std::vector<std::pair<int, std::size_t>>& places,
             bool shares, const std::vector<py::object>& states)
      : engine(std::move(owner)), rule(rule_named(std::string(rule_name))), shares_parameters(shares) {
    for (const auto& [rank, offset] : places) parameters.push_back((*engine)->address(rank, offset));
    for (std::size_t i = 0; i < states.size() && i < addresses.size(); ++i)
      if (!states[i].is_none()) addresses[i] = ArrayView(states[i], ArrayView::Access::write).data();
    arrays = states;
  }

  EnginePointer engine;
  Rule rule;
  bool shares_parameters;
  std::vector<std::byte*> parameters;
  std::array<std::byte*, 3> addresses{};
  std::vector<py::object> arrays;  // what the state lies in
};

Request in_place(const std::string& name, int op, const ArrayView& array) {
  Request request;
  request.kind = CallKind::allreduce;
  request.op = op_numbered(op);
  request.name = name;
  Tensor tensor;
  tensor.input = tensor.output = array.data();
  tensor.dtype = array.dtype();
  tensor.shape.assign(array.shape().begin(), array.shape().end());
  request.tensors.push_back(std::move(tensor));
  return request;
}

PythonOperation reduce_in_place(const EnginePointer& self, std::uint32_t group, const std::string& name,
                                const py::object& array, int op, bool norm, bool waits) {
  KeptArrays kept;
  Request request = in_place(name, op, kept.add(array, ArrayView::Access::write));
  request.direct = true;
  request.norm = norm;
  return {self, self->submit(group, std::move(request), std::move(kept), waits)};
}

using StretchTuple = std::tuple<std::size_t, std::size_t, std::uint32_t>;

PythonOperation submit_update(const EnginePointer& self, std::uint32_t group, const std::string& name,
                              const py::object& gradients, int op, const std::shared_ptr<UpdatePlan>& plan,
                              const std::vector<StretchTuple>& stretches, const std::vector<py::dict>& rates,
                              double factor, bool keeps_gradients, bool measures) {
  KeptArrays kept;
  Request request = in_place(name, op, kept.add(gradients, ArrayView::Access::write));
  request.kind = CallKind::update;
  for (const py::object& array : plan->arrays)
    if (!array.is_none()) kept.add(array, ArrayView::Access::write);
  auto update = std::make_shared<Update>();
  update->rule = plan->rule;
  update->measures = measures;
  update->keeps_gradients = keeps_gradients;
  update->factor = factor;
  update->shares_parameters = plan->shares_parameters;
  update->parameters = plan->parameters;
  update->states = plan->addresses;
  const std::size_t count = request.tensors.front().count();
  for (const auto& [begin, end, number] : stretches) {
    const bool ascending = update->stretches.empty() || update->stretches.back().end <= begin;
    if (begin >= end || end > count || !ascending || number >= rates.size())
      fail_usage("Stretches of an update ascend within the array and have rates.");
    update->stretches.push_back({begin, end, number});
  }
  for (const py::dict& numbers : rates) update->rates.push_back(rates_of(numbers));
  request.update = std::move(update);
  return {self, self->submit(group, std::move(request), std::move(kept), true)};
}

// (begin, end) of the elements that a member owns on its node, in the order in which its state has them.
// `node_of_member` tells by numbers which members share a node.
std::vector<std::pair<std::size_t, std::size_t>> owned_parts(std::size_t count, std::size_t element_bytes,
                                                             const std::vector<int>& node_of_member, int member) {
  const Nodes nodes(node_of_member);
  const Parts parts(count, element_bytes, static_cast<std::size_t>(nodes.columns()));
  const std::vector<int> columns = nodes.columns_of(member);
  std::vector<std::pair<std::size_t, std::size_t>> all;
  for (std::size_t turn = 0; turn < parts.turns(); ++turn)
    for (const int column : columns) {
      const Parts::Part part = parts.of(turn, static_cast<std::size_t>(column));
      if (part.begin < part.end) all.emplace_back(part.begin, part.end);
    }
  return all;
}

}  // namespace

void bind_updates(py::module_& module) {
  py::class_<UpdatePlan, std::shared_ptr<UpdatePlan>>(module, "UpdatePlan")
      .def(py::init<EnginePointer, std::string_view, const std::vector<std::pair<int, std::size_t>>&, bool,
                    const std::vector<py::object>&>(),
           py::arg("engine"), py::arg("rule"), py::arg("places"), py::arg("shares"), py::arg("states"));
  const py::object engine = module.attr("Engine");
  const auto add = [&](const char* name, auto function, auto... arguments) {
    py::setattr(engine, name, py::cpp_function(function, py::name(name), py::is_method(engine), arguments...));
  };
  add("reduce_in_place", &reduce_in_place, py::arg("group"), py::arg("name"), py::arg("array"), py::arg("op"),
      py::arg("norm") = false, py::arg("waits") = false);
  add("update", &submit_update, py::arg("group"), py::arg("name"), py::arg("gradients"), py::arg("op"), py::arg("plan"),
      py::arg("stretches"), py::arg("rates"), py::arg("factor") = 1.0, py::arg("keeps_gradients") = false,
      py::arg("measures") = false);
  add(
      "offset_of",
      [](const EnginePointer& self, const py::object& array) {
        const ArrayView view(array, ArrayView::Access::write);
        return (*self)->offset_of(view.data(), view.bytes());
      },
      py::arg("array"));
  module.def("release_free_memory", [] {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
  });
  module.def("owned_parts", &owned_parts, py::arg("count"), py::arg("element_bytes"), py::arg("nodes"),
             py::arg("member"));
}

}  // namespace ringred
