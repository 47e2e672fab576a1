#include "csrc/python/spanning.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/engine/gate.h"
#include "csrc/link/mpi.h"
#include "csrc/link/sockets.h"
#include "csrc/python/arrays.h"
#include "csrc/python/gil_hooks.h"
#include "csrc/python/python_engine.h"
#include "csrc/python/selection.h"
#include "csrc/python/settings.h"
#include "csrc/queue/exchange.h"
#include "csrc/queue/nodes.h"
#include "csrc/select/calibrate.h"

namespace py = pybind11;

namespace ringred {
namespace {

// Where one node has a Communicator, several have a group of their own in the engine (opening.h), whose operations are
// the calls.
class SpanningCommunicator {
 public:
  SpanningCommunicator(std::shared_ptr<PythonEngine> engine, std::uint32_t group, const Settings& settings,
                       const Nodes& nodes, const std::optional<Costs>& costs)
      : engine_(std::move(engine)), group_(group), selection_(settings, placement_of(nodes, settings), costs) {}

  int rank() { return (*engine_)->rank(); }
  int size() { return (*engine_)->size(); }

  void barrier(const std::string& tag) { call(CallKind::barrier, Op::sum, -1, tag, {}, {}); }

  void allreduce(py::handle input, py::handle output, int op, const std::string& tag) {
    KeptArrays kept;
    const ArrayView& from = kept.add(input, ArrayView::Access::read);
    const ArrayView& to = kept.add(output, ArrayView::Access::write);
    check_result(from, to);
    call(CallKind::allreduce, op_numbered(op), -1, tag, tensor_of(from, to), std::move(kept));
  }

  py::object allreduce_in_place(py::object array, int op, const std::string& tag) {
    in_place(CallKind::allreduce, array, op_numbered(op), -1, tag);
    return array;
  }

  py::object broadcast_in_place(py::object array, int root, const std::string& tag) {
    in_place(CallKind::broadcast, array, Op::sum, root, tag);
    return array;
  }

  std::shared_ptr<Arena::Block> allocate(std::size_t bytes) { return (*engine_)->arena_memory()->allocate(bytes); }

  const Selection& selection() const { return selection_; }

  // All agree on it by the barrier, when they are out of the call before.
  void force(const std::string& algorithm) {
    barrier("force " + algorithm);
    selection_.force(way_of(algorithm));
  }

  py::dict tune(double seconds) {
    barrier("calibration");
    const Gate::Inside inside(gate_, name_of(CallKind::allreduce));
    return tuned(time_probes(thorough_probes(selection_.placement(), selection_.one_shot_room()), seconds), selection_);
  }

  // The engine, which leaves first, has told the reason.
  bool leave(const std::string&) { return gate_.close(ended_with_shutdown); }

  void abandon() {
    gate_.open_again();
    gate_.close(forked);
  }

 private:
  static std::vector<Tensor> tensor_of(const ArrayView& from, const ArrayView& to) {
    Tensor tensor;
    tensor.input = from.data();
    tensor.output = to.data();
    tensor.dtype = from.dtype();
    tensor.shape.assign(from.shape().begin(), from.shape().end());
    return {std::move(tensor)};
  }

  void in_place(CallKind kind, py::handle array, Op op, int root, const std::string& tag) {
    KeptArrays kept;
    const ArrayView& view = kept.add(array, ArrayView::Access::write);
    call(kind, op, root, tag, tensor_of(view, view), std::move(kept));
  }

  void call(CallKind kind, Op op, int root, const std::string& tag, std::vector<Tensor> tensors, KeptArrays kept) {
    const Gate::Inside inside(gate_, name_of(kind));
    if (kind != CallKind::allreduce)
      return perform(std::nullopt, kind, op, root, tag, std::move(tensors), std::move(kept));
    const Way way = selection_.of(tensors.front().count() * info(tensors.front().dtype).size, true);
    perform(way, kind, op, root, tag, std::move(tensors), std::move(kept));
  }

  void perform(std::optional<Way> way, CallKind kind, Op op, int root, const std::string& tag,
               std::vector<Tensor> tensors, KeptArrays kept) {
    if (last_ && !last_->done())
      fail_usage("A synchronous call that was interrupted has to end before the next one: '" +
                 last_->request.describe() + "' is still in flight. Call shutdown() and init() on all ranks to go on.");
    Request request;
    request.kind = kind;
    request.op = op;
    request.root = root;
    request.call = true;
    if (way != Way::hierarchical) request.way = way;  // which is the usual one
    request.tag = tag;
    request.name = "call";
    request.tensors = std::move(tensors);
    if (kind == CallKind::allreduce) request.location = location_of(request.tensors.front());
    last_ = engine_->submit(group_, std::move(request), std::move(kept), true);
    GilHooks hooks;
    (*engine_)->wait(*last_, hooks);
  }

  std::size_t location_of(const Tensor& tensor) const {
    return tensor.input == tensor.output
               ? (*engine_)->arena_memory()->location(tensor.output, tensor.count() * info(tensor.dtype).size)
               : 0;
  }

  // Of zeros; what the slowest rank needed.
  std::vector<Sample> time_probes(const std::vector<Probe>& probes, double seconds) {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point begin) {
      return std::chrono::duration<double>(Clock::now() - begin).count();
    };
    std::size_t most = 0;
    for (const Probe& probe : probes) most = std::max(most, probe.bytes);
    std::vector<float> data(most / sizeof(float));
    const auto began = Clock::now();
    return measure(probes, seconds, [&](const Probe& probe, int iterations) -> Timed {
      std::fill_n(data.begin(), probe.bytes / sizeof(float), 0.0f);
      largest(0);  // all begin together
      const auto begin = Clock::now();
      for (int iteration = 0; iteration < iterations; ++iteration)
        reduce_in_place(probe.way, Op::sum, DType::f32, data.data(), probe.bytes / sizeof(float));
      return {largest(since(begin) / std::max(iterations, 1)), largest(since(began))};
    });
  }

  // Of all ranks' values.
  double largest(double value) {
    reduce_in_place(Way::one_shot, Op::max, DType::f64, &value, 1);
    return value;
  }

  void reduce_in_place(Way way, Op op, DType dtype, void* data, std::size_t count) {
    Tensor tensor;
    tensor.input = tensor.output = static_cast<std::byte*>(data);
    tensor.dtype = dtype;
    tensor.shape = {static_cast<std::int64_t>(count)};
    perform(way, CallKind::allreduce, op, -1, "calibration", {tensor}, {});
  }

  const std::shared_ptr<PythonEngine> engine_;
  const std::uint32_t group_;
  Selection selection_;
  std::shared_ptr<Operation> last_;
  Gate gate_;
};

// What a plan is across nodes: the call with its arguments.
class SpanningPlan {
 public:
  SpanningPlan(std::shared_ptr<SpanningCommunicator> communicator, py::object array, int op, std::string tag)
      : communicator_(std::move(communicator)),
        array_(std::move(array)),
        view_(array_, ArrayView::Access::write),
        storage_(KeptArrays::storage_of(array_)),
        op_(op),
        tag_(std::move(tag)) {
    const Op number = op_numbered(op);
    if (!is_defined(number, view_.dtype()))
      fail_usage("The operator " + std::string(name_of(number)) + " is not defined for " +
                 std::string(info(view_.dtype()).name) + ".");
  }

  py::object operator()() {
    const ArrayView now(array_, ArrayView::Access::write);
    if (now.data() != view_.data())
      fail_usage(
          "A plan is bound to the memory that its tensor had: this tensor has other memory by now. Bind it again.");
    return communicator_->allreduce_in_place(array_, op_, tag_);
  }

 private:
  std::shared_ptr<SpanningCommunicator> communicator_;
  py::object array_;
  ArrayView view_;
  py::object storage_;
  int op_;
  std::string tag_;
};

std::shared_ptr<Network> mpi_network(const std::string& library, std::size_t handle_bytes, std::uint64_t communicator,
                                     std::uint64_t byte_type, std::vector<int> ranks, bool any_thread) {
  MpiSetup setup;
  setup.library = library;
  setup.handle_bytes = handle_bytes;
  setup.communicator = communicator;
  setup.byte_type = byte_type;
  setup.ranks = std::move(ranks);
  setup.any_thread = any_thread;
  return make_mpi_network(std::move(setup));
}

}  // namespace

void bind_spanning(py::module_& module) {
  py::class_<Network, std::shared_ptr<Network>>(module, "Network");
  module.def("mpi_network", &mpi_network, py::arg("library"), py::arg("handle_bytes"), py::arg("communicator"),
             py::arg("byte_type"), py::arg("ranks"), py::arg("any_thread"));
  module.def(
      "socket_network",
      [](std::vector<int> sockets) -> std::shared_ptr<Network> { return make_socket_network(std::move(sockets)); },
      py::arg("sockets"));
  module.attr("CALLERS_GROUP") = py::int_(RankBlock::callers_group);

  py::class_<SpanningCommunicator, std::shared_ptr<SpanningCommunicator>>(module, "SpanningCommunicator")
      .def(py::init([](std::shared_ptr<PythonEngine> engine, std::uint32_t group,
                       const std::map<std::string, std::string>& environment, const std::vector<int>& nodes,
                       const std::optional<CostTable>& costs) {
             return std::make_shared<SpanningCommunicator>(
                 std::move(engine), group, read_settings(lookup_in(environment)), Nodes(nodes), costs_of(costs));
           }),
           py::arg("engine"), py::arg("group"), py::arg("environment"), py::arg("nodes"),
           py::arg("costs") = std::nullopt)
      .def_property_readonly("selection", &SpanningCommunicator::selection, py::return_value_policy::reference_internal)
      .def("force", &SpanningCommunicator::force, py::arg("algorithm"))
      .def("tune", &SpanningCommunicator::tune, py::arg("seconds"))
      .def_property_readonly("rank", &SpanningCommunicator::rank)
      .def_property_readonly("size", &SpanningCommunicator::size)
      .def("barrier", &SpanningCommunicator::barrier, py::arg("tag") = "")
      .def("allreduce", &SpanningCommunicator::allreduce, py::arg("input"), py::arg("output"), py::arg("op"),
           py::arg("tag") = "")
      .def("allreduce_", &SpanningCommunicator::allreduce_in_place, py::arg("array"), py::arg("op"),
           py::arg("tag") = "")
      .def("broadcast_", &SpanningCommunicator::broadcast_in_place, py::arg("array"), py::arg("root_rank"),
           py::arg("tag") = "")
      .def(
          "plan",
          [](std::shared_ptr<SpanningCommunicator> self, py::object array, int op, std::string tag) {
            return std::make_unique<SpanningPlan>(std::move(self), std::move(array), op, std::move(tag));
          },
          py::arg("array"), py::arg("op"), py::arg("tag") = "")
      .def("allocate", &SpanningCommunicator::allocate, py::arg("bytes"))
      .def("waited",
           [](SpanningCommunicator& self) {
             return std::vector<std::pair<std::uint64_t, double>>(static_cast<std::size_t>(self.size()));
           })
      .def("leave", &SpanningCommunicator::leave, py::arg("reason"))
      .def("abandon", &SpanningCommunicator::abandon);

  py::class_<SpanningPlan>(module, "SpanningPlan").def("__call__", &SpanningPlan::operator());
}

}  // namespace ringred
