#include "csrc/python/spanning.h"

#include <pybind11/stl.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "csrc/link/mpi.h"
#include "csrc/link/sockets.h"
#include "csrc/python/arrays.h"
#include "csrc/python/gil_hooks.h"
#include "csrc/python/python_engine.h"

namespace py = pybind11;

namespace ringred {
namespace {

// Where one node has a Communicator, several have a group of their own in the engine (opening.h), whose operations are
// the calls.
class SpanningCommunicator {
 public:
  SpanningCommunicator(std::shared_ptr<PythonEngine> engine, std::uint32_t group)
      : engine_(std::move(engine)), group_(group) {}

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

  bool leave(const std::string& reason) {
    closed_ = "this communicator ended with shutdown(). Call init(), and bind plans again.";
    static_cast<void>(reason);  // the engine, which leaves first, has told it
    return active_.load() == nullptr;
  }

  void abandon() { active_.store(nullptr); }

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
    const Inside inside(*this, kind);
    if (last_ && !last_->done())
      fail_usage("A synchronous call that was interrupted has to end before the next one: '" +
                 last_->request.describe() + "' is still in flight. Call shutdown() and init() on all ranks to go on.");
    Request request;
    request.kind = kind;
    request.op = op;
    request.root = root;
    request.call = true;
    request.tag = tag;
    request.name = "call";
    request.tensors = std::move(tensors);
    last_ = engine_->submit(group_, std::move(request), std::move(kept), true);
    GilHooks hooks;
    (*engine_)->wait(*last_, hooks);
  }

  // One thread at a time, as in a Communicator.
  struct Inside {
    SpanningCommunicator& self;
    Inside(SpanningCommunicator& communicator, CallKind kind) : self(communicator) {
      const char* name = name_of(kind).data();
      const char* other = nullptr;
      if (!self.active_.compare_exchange_strong(other, name))
        fail_usage("One thread at a time may be in a synchronous call: this one calls " + std::string(name) +
                   " while another is in " + other + ". Use a lock, or call from one thread.");
      if (self.closed_ == nullptr) return;
      self.active_.store(nullptr);
      fail_usage(std::string(name) + " cannot be called here: " + self.closed_);
    }
    ~Inside() { self.active_.store(nullptr); }
  };

  const std::shared_ptr<PythonEngine> engine_;
  const std::uint32_t group_;
  std::shared_ptr<Operation> last_;
  std::atomic<const char*> active_{nullptr};
  const char* closed_ = nullptr;  // guarded by the GIL
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
      .def(py::init<std::shared_ptr<PythonEngine>, std::uint32_t>(), py::arg("engine"), py::arg("group"))
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
