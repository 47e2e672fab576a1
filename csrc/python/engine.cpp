#include "csrc/python/engine.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/python/arrays.h"
#include "csrc/python/gil_hooks.h"
#include "csrc/python/python_engine.h"
#include "csrc/python/result.h"
#include "csrc/reduce/hash.h"

namespace py = pybind11;

namespace ringred {
namespace {

constexpr CallKind kinds[] = {CallKind::barrier,  CallKind::broadcast,     CallKind::allreduce, CallKind::allgather,
                              CallKind::alltoall, CallKind::reducescatter, CallKind::join};

CallKind kind_named(std::string_view name) {
  for (const CallKind kind : kinds)
    if (name_of(kind) == name) return kind;
  fail_usage("There is no collective '" + std::string(name) + "'.");
}

std::optional<DType> wire_named(const std::string& name) {
  if (name.empty()) return std::nullopt;
  const std::optional<DType> dtype = dtype_named(name);
  if (!dtype || info(*dtype).type_class != TypeClass::half)
    fail_usage("Numbers travel as float16 or bfloat16, or as they are: wire is '" + name + "'.");
  return dtype;
}

struct Arrays {
  Request request;
  KeptArrays kept;
};

void add_array(Arrays& arrays, py::handle input, py::handle output, bool in_place) {
  using Access = ArrayView::Access;
  const bool reads_only = output.is_none() || !in_place;
  const ArrayView& from = arrays.kept.add(input, reads_only ? Access::read : Access::write);
  Tensor tensor;
  tensor.input = from.data();
  tensor.dtype = from.dtype();
  tensor.shape.assign(from.shape().begin(), from.shape().end());
  if (in_place) tensor.output = from.data();
  if (!in_place && !output.is_none()) {
    const ArrayView& to = arrays.kept.add(output, Access::write);
    tensor.output = to.data();
    const bool whole = arrays.request.kind == CallKind::allreduce || arrays.request.kind == CallKind::broadcast;
    if (to.dtype() != from.dtype() || (whole && to.count() != from.count()))
      fail_usage("Input and output must have the same dtype and number of elements: they have " +
                 std::string(info(from.dtype()).name) + " x " + std::to_string(from.count()) + " and " +
                 std::string(info(to.dtype()).name) + " x " + std::to_string(to.count()) + ".");
  }
  arrays.request.tensors.push_back(std::move(tensor));
}

void check_scattered(const Arrays& arrays, const py::sequence& outputs, int index, int size) {
  for (std::size_t i = 0; i < arrays.request.tensors.size(); ++i) {
    const Tensor& tensor = arrays.request.tensors[i];
    const RowRange rows = rows_of(tensor.rows(), index, size);
    const ArrayView output(outputs[i], ArrayView::Access::write);
    if (output.count() != (rows.end - rows.begin) * tensor.row_elements())
      fail_usage("The output of a reducescatter holds this rank's rows: it has " + std::to_string(output.count()) +
                 " elements, and " + std::to_string((rows.end - rows.begin) * tensor.row_elements()) + " are needed.");
  }
}

std::shared_ptr<Operation> submit(PythonEngine& engine, std::uint32_t group, std::string_view kind,
                                  const std::optional<std::string>& name, const py::sequence& inputs,
                                  const py::object& outputs, int op, double prescale, double postscale, int root,
                                  const std::string& wire, const py::object& splits, bool allow, bool waits) {
  Arrays arrays;
  Request& request = arrays.request;
  request.kind = kind_named(kind);
  request.op = op_numbered(op);
  request.prescale = prescale;
  request.postscale = postscale;
  request.root = root;
  request.wire = wire_named(wire);
  request.allow = allow;
  request.name = name.value_or(std::string());
  const bool in_place = outputs.is(inputs);
  const std::size_t count = py::len(inputs);
  if (!outputs.is_none() && py::len(outputs) != count)
    fail_usage("There must be an output for each input: there are " + std::to_string(count) + " inputs and " +
               std::to_string(py::len(outputs)) + " outputs.");
  for (std::size_t i = 0; i < count; ++i)
    add_array(arrays, inputs[i], outputs.is_none() ? py::object(py::none()) : py::object(outputs[py::int_(i)]),
              in_place);
  if (request.kind == CallKind::reducescatter && !outputs.is_none())
    if (const auto members = engine->group(group); members)
      check_scattered(arrays, outputs, members->index(), members->size());
  if (!splits.is_none())
    for (std::size_t i = 0; i < std::min(count, py::len(splits)); ++i)
      request.tensors[i].splits = splits[py::int_(i)].cast<std::vector<std::int64_t>>();
  return engine.submit(group, std::move(request), std::move(arrays.kept), waits);
}

void wait(PythonEngine& engine, Operation& operation) {
  GilHooks hooks;
  engine->wait(operation, hooks);
}

std::uint64_t hash_of_array(py::handle array) {
  const ArrayView view(array, ArrayView::Access::read);
  const InstructionSet& set = instruction_set("auto");
  const py::gil_scoped_release unlocked;
  return hash_bytes(set, view.data(), view.bytes());
}

std::size_t count_different_elements(py::handle left, py::handle right) {
  const ArrayView a(left, ArrayView::Access::read), b(right, ArrayView::Access::read);
  if (a.dtype() != b.dtype() || a.count() != b.count())
    fail_usage("Only arrays of one dtype and number of elements can be compared.");
  const py::gil_scoped_release unlocked;
  return count_different(a.data(), b.data(), a.count(), info(a.dtype()).size);
}

using WithoutGil = py::call_guard<py::gil_scoped_release>;

void bind_operation(py::module_& module) {
  py::class_<ResultView>(module, "Result", py::buffer_protocol())
      .def_buffer([](ResultView& view) { return view.buffer(); })
      .def("__len__", &ResultView::size);
  py::class_<PythonOperation>(module, "Operation")
      .def_property_readonly("name", [](const PythonOperation& self) { return self->request.name; })
      .def_property_readonly("group", [](const PythonOperation& self) { return self->group; })
      .def_property_readonly("span",  // when its data moved, in seconds of a monotonic clock
                             [](const PythonOperation& self) {
                               return std::pair(static_cast<double>(self->started) * 1e-9,
                                                static_cast<double>(self->ended) * 1e-9);
                             })
      .def_property_readonly("squares", [](const PythonOperation& self) { return self->squares; })
      .def_property_readonly("last_joined", [](const PythonOperation& self) { return self->last_joined; })
      .def("done", [](const PythonOperation& self) { return self->done(); })
      .def("wait", [](const PythonOperation& self) { wait(*self.engine, *self.operation); })
      .def("results", &PythonOperation::results)
      .def("__hash__", [](const PythonOperation& self) { return std::hash<const Operation*>()(self.operation.get()); })
      .def("__eq__",
           [](const PythonOperation& self, const PythonOperation& other) { return self.operation == other.operation; });
}

}  // namespace

void bind_engine(py::module_& module) {
  bind_operation(module);
  py::class_<PythonEngine, std::shared_ptr<PythonEngine>>(module, "Engine")
      .def_property_readonly("rank", [](PythonEngine& self) { return self->rank(); })
      .def_property_readonly("size", [](PythonEngine& self) { return self->size(); })
      .def_property_readonly("arena", [](PythonEngine& self) { return self->arena(); })
      .def("let_go", &PythonEngine::let_go)
      .def(
          "submit",
          [](const std::shared_ptr<PythonEngine>& self, std::uint32_t group, std::string_view kind,
             const std::optional<std::string>& name, const py::sequence& inputs, const py::object& outputs, int op,
             double prescale, double postscale, int root, const std::string& wire, const py::object& splits, bool allow,
             bool waits) {
            return PythonOperation{self, submit(*self, group, kind, name, inputs, outputs, op, prescale, postscale,
                                                root, wire, splits, allow, waits)};
          },
          py::arg("group"), py::arg("kind"), py::arg("name"), py::arg("inputs"), py::arg("outputs") = py::none(),
          py::arg("op") = 1, py::arg("prescale") = 1.0, py::arg("postscale") = 1.0, py::arg("root") = -1,
          py::arg("wire") = "", py::arg("splits") = py::none(), py::arg("allow") = false, py::arg("waits") = false)
      .def(
          "prepare_group", [](PythonEngine& self, const std::vector<int>& ranks) { return self->prepare_group(ranks); },
          py::arg("ranks"))
      .def(
          "connect_group",
          [](PythonEngine& self, std::uint32_t number, std::vector<int> ranks, const std::vector<std::size_t>& offsets,
             int serial) { self->connect_group(number, std::move(ranks), offsets, serial); },
          py::arg("number"), py::arg("ranks"), py::arg("offsets"), py::arg("serial"))
      .def(
          "remove_group", [](PythonEngine& self, std::uint32_t number) { self->remove_group(number); },
          py::arg("number"), WithoutGil())
      .def(
          "tell", [](PythonEngine& self, const PythonOperation& operation) { self->tell(operation.operation); },
          py::arg("operation"))
      .def("await_completed",
           [](const std::shared_ptr<PythonEngine>& self) {
             std::vector<std::shared_ptr<Operation>> told;
             {
               const py::gil_scoped_release unlocked;
               told = (*self)->await_told();
             }
             std::vector<PythonOperation> operations;
             for (auto& operation : told) operations.push_back({self, std::move(operation)});
             return operations;
           })
      .def(
          "stragglers",
          [](PythonEngine& self, std::uint32_t group) {
            std::vector<std::pair<std::uint64_t, double>> rows;
            for (const Engine::Lateness& late : self->lateness(group)) rows.emplace_back(late.times, late.seconds);
            return rows;
          },
          py::arg("group"))
      .def(
          "record_failure", [](PythonEngine& self, const std::string& text) { self->record_failure(text); },
          py::arg("text"))
      .def("failures", [](PythonEngine& self) { return self->failures(); })
      .def("flight_recorder_json", [](PythonEngine& self) { return self->flight_recorder(); })
      .def("timeline_start", [](PythonEngine& self) { self->timeline().start(self->rank()); })
      .def("timeline_stop", [](PythonEngine& self) { self->timeline().stop(); })
      .def(
          "timeline_drain", [](PythonEngine& self) { return self->timeline().drain(); }, WithoutGil())
      .def(
          "set_stack_source",
          [](PythonEngine& self, int signal, int descriptor) { self.set_stack_source(signal, descriptor); },
          py::arg("signal"), py::arg("descriptor"))
      .def(
          "leave", [](PythonEngine& self, const std::string& reason) { self->leave(reason); }, py::arg("reason"),
          WithoutGil())
      .def("abandon", [](PythonEngine& self) { self->abandon(); });
  module.def("hash_bytes", &hash_of_array, py::arg("array"));
  module.def("count_different", &count_different_elements, py::arg("left"), py::arg("right"));
}

}  // namespace ringred
