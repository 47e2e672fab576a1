#include "csrc/python/communicator.h"

#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/engine/communicator.h"
#include "csrc/python/arrays.h"
#include "csrc/python/gil_hooks.h"
#include "csrc/python/python_engine.h"
#include "csrc/python/selection.h"
#include "csrc/python/settings.h"

namespace py = pybind11;

namespace ringred {
namespace {

// Another library's operator is no number of ours, even where it has the same one.
Op op_of(py::handle op) {
  const bool is_number = PyLong_Check(op.ptr()) && !PyBool_Check(op.ptr());
  const long number = is_number ? PyLong_AsLong(op.ptr()) : -1;
  for (const OpInfo& row : op_table)
    if (static_cast<long>(row.op) == number) return row.op;
  PyErr_Clear();  // of a number that no long holds
  const std::string type = py::str(py::type::handle_of(op).attr("__qualname__")).cast<std::string>();
  fail_usage("op must be Sum, Average, Min, Max or Product of ringred: it is " + py::repr(op).cast<std::string>() +
             ", a " + type + ".");
}

// What a rank makes before it knows its peers: its settings and its own memory.
class Endpoint {
 public:
  Endpoint(int size, const std::map<std::string, std::string>& environment)
      : settings_(read_settings(lookup_in(environment))),
        arena_(Communicator::make_arena(size, settings_, Engine::Memory::bytes(size, settings_))),
        memory_(Engine::Memory::make(*arena_, size)) {
    control(arena_->segment().base()).engine.store(memory_.rank->offset(), std::memory_order_release);
    nodes_.resize(static_cast<std::size_t>(size));
  }

  static ControlBlock& control(std::byte* base) { return *reinterpret_cast<ControlBlock*>(base); }

  int descriptor() const { return arena_->segment().descriptor(); }
  const Settings& settings() const { return settings_; }
  std::shared_ptr<Arena> arena() const { return arena_; }
  const Engine::Memory& memory() const { return memory_; }

  // Makes the world's group, once it is known on which node each rank is. Returns where peers find this rank's part of
  // the engine and of that group.
  std::pair<std::size_t, std::size_t> settle(int rank, std::vector<int> nodes) {
    nodes_ = std::move(nodes);
    memory_.make_world(*arena_, rank, static_cast<int>(nodes_.size()), nodes_, settings_);
    return {memory_.rank->offset(), memory_.world->offset()};
  }
  const std::vector<int>& nodes() const { return nodes_; }

 private:
  Settings settings_;
  std::shared_ptr<Arena> arena_;
  Engine::Memory memory_;
  std::vector<int> nodes_;
};

void report_on_stderr(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

// Where all ranks are on one node, its Communicator for the synchronous calls, too; else null.
std::pair<std::shared_ptr<Communicator>, std::shared_ptr<PythonEngine>> connect(
    const Endpoint& endpoint, int rank, const std::vector<int>& descriptors, const std::vector<int>& lifelines,
    const std::vector<std::pair<std::size_t, std::size_t>>& places, bool cores_suffice, bool reports,
    std::shared_ptr<Network> network, const std::optional<CostTable>& costs) {
  auto mapped = std::make_shared<std::vector<Segment>>();
  mapped->reserve(descriptors.size());
  Communicator::Setup setup;
  Engine::Setup engine;
  setup.rank = engine.rank = rank;
  setup.size = engine.size = static_cast<int>(descriptors.size());
  setup.arena = engine.arena = endpoint.arena();
  for (int peer = 0; peer < setup.size; ++peer) {
    const auto place = static_cast<std::size_t>(peer);
    const Segment* segment = peer == rank ? &setup.arena->segment() : nullptr;
    if (peer != rank && descriptors[place] >= 0) {
      mapped->push_back(Segment::map(descriptors[place]));
      segment = &mapped->back();
    }
    setup.bases.push_back(segment == nullptr ? nullptr : segment->base());  // on another node
    engine.lengths.push_back(segment == nullptr ? 0 : segment->size());
    engine.rank_offsets.push_back(places[place].first);
    engine.world_offsets.push_back(places[place].second);
  }
  engine.bases = setup.bases;
  setup.segments = engine.segments = std::move(mapped);
  setup.lifelines = engine.lifelines = lifelines;
  setup.cores_suffice = engine.cores_suffice = cores_suffice;
  setup.settings = engine.settings = endpoint.settings();
  setup.costs = costs_of(costs);
  engine.memory = endpoint.memory();
  engine.network = network;
  if (network) engine.nodes = endpoint.nodes();
  if (reports) engine.report = report_on_stderr;
  auto connected = std::make_shared<PythonEngine>(std::move(engine));
  if (network) return {nullptr, std::move(connected)};
  setup.hooks = std::make_unique<GilHooks>([connected](const std::string& sentence) {
    sentence.empty() ? (*connected)->goes_on() : (*connected)->stalls_in(sentence);
  });
  return {std::make_shared<Communicator>(std::move(setup)), std::move(connected)};
}

// An allreduce bound to one array: calling it parses nothing.
class AllreducePlan {
 public:
  AllreducePlan(std::shared_ptr<Communicator> communicator, py::object array, py::handle op, std::string tag)
      : communicator_(std::move(communicator)),
        array_(std::move(array)),
        view_(array_, ArrayView::Access::write),
        storage_(KeptArrays::storage_of(array_)),
        tag_(std::move(tag)),
        call_{CallKind::allreduce, op_of(op), view_.dtype(), -1, view_.shape(), tag_},
        reduction_(communicator_->bind(call_, view_.data(), view_.data(), view_.count())) {}

  py::object operator()() const {
    if (storage_) check_memory();
    communicator_->run(call_, reduction_);
    return array_;
  }

 private:
  void check_memory() const {
    if (reinterpret_cast<std::byte*>(array_.attr("data_ptr")().cast<std::uintptr_t>()) != view_.data())
      fail_usage(
          "A plan is bound to the memory that its tensor had: this tensor has other memory by now. Bind it again.");
  }

  std::shared_ptr<Communicator> communicator_;
  py::object array_;
  ArrayView view_;
  py::object storage_;  // a torch tensor's memory, which the tensor may exchange for another
  std::string tag_;
  Call call_;
  Reduction reduction_;
};

void allreduce(Communicator& communicator, py::handle input, py::handle output, py::handle op, std::string_view tag) {
  const ArrayView from(input, ArrayView::Access::read), to(output, ArrayView::Access::write);
  check_result(from, to);
  const Call call{CallKind::allreduce, op_of(op), from.dtype(), -1, from.shape(), tag};
  communicator.run(call, communicator.bind(call, from.data(), to.data(), from.count()));
}

py::object allreduce_in_place(Communicator& communicator, py::object array, py::handle op, std::string_view tag) {
  const ArrayView view(array, ArrayView::Access::write);
  const Call call{CallKind::allreduce, op_of(op), view.dtype(), -1, view.shape(), tag};
  communicator.run(call, communicator.bind(call, view.data(), view.data(), view.count()));
  return array;
}

py::object broadcast_in_place(Communicator& communicator, py::object array, int root, std::string_view tag) {
  const ArrayView view(array, ArrayView::Access::write);
  communicator.broadcast({CallKind::broadcast, Op::sum, view.dtype(), root, view.shape(), tag}, view.data(),
                         view.bytes());
  return array;
}

// All agree on it by the barrier, when they are out of the call before.
void force(Communicator& communicator, const std::string& algorithm) {
  communicator.barrier("force " + algorithm);
  communicator.force(way_of(algorithm));
}

py::dict tune(Communicator& communicator, double seconds) {
  const Selection& selection = communicator.selection();
  return tuned(communicator.time_probes(thorough_probes(selection.placement(), selection.one_shot_room()), seconds),
               selection);
}

// Memory of the arena as a writable buffer of bytes.
py::buffer_info buffer_of(Arena::Block& block) {
  return py::buffer_info(reinterpret_cast<unsigned char*>(block.data()), static_cast<py::ssize_t>(block.size()));
}

}  // namespace

void bind_communicator(py::module_& module) {
  py::class_<Arena::Block, std::shared_ptr<Arena::Block>>(module, "Block", py::buffer_protocol())
      .def_buffer(&buffer_of);

  py::class_<Endpoint>(module, "Endpoint")
      .def(py::init<int, const std::map<std::string, std::string>&>(), py::arg("size"), py::arg("environment"))
      .def_property_readonly("descriptor", &Endpoint::descriptor)
      .def("settle", &Endpoint::settle, py::arg("rank"), py::arg("nodes"))
      .def("connect", &connect, py::arg("rank"), py::arg("descriptors"), py::arg("lifelines"), py::arg("places"),
           py::arg("cores_suffice"), py::arg("reports"), py::arg("network") = nullptr, py::arg("costs") = std::nullopt);

  py::class_<Communicator, std::shared_ptr<Communicator>>(module, "Communicator")
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def("barrier", &Communicator::barrier, py::arg("tag") = "")
      .def("allreduce", &allreduce, py::arg("input"), py::arg("output"), py::arg("op"), py::arg("tag") = "")
      .def("allreduce_", &allreduce_in_place, py::arg("array"), py::arg("op"), py::arg("tag") = "")
      .def("broadcast_", &broadcast_in_place, py::arg("array"), py::arg("root_rank"), py::arg("tag") = "")
      .def(
          "allocate", [](Communicator& self, std::size_t bytes) { return self.arena().allocate(bytes); },
          py::arg("bytes"))
      .def("waited",
           [](Communicator& self) {
             std::vector<std::pair<std::uint64_t, double>> rows;
             for (int peer = 0; peer < self.size(); ++peer) {
               const Waiter::Waited& waited = self.waited_for(peer);
               rows.emplace_back(waited.times.load(), static_cast<double>(waited.nanoseconds.load()) / 1e9);
             }
             return rows;
           })
      .def_property_readonly("selection", &Communicator::selection, py::return_value_policy::reference_internal)
      .def("force", &force, py::arg("algorithm"))
      .def("tune", &tune, py::arg("seconds"))
      .def("leave", &Communicator::leave, py::arg("reason"))
      .def("abandon", &Communicator::abandon);

  py::class_<AllreducePlan>(module, "AllreducePlan")
      .def(py::init<std::shared_ptr<Communicator>, py::object, py::handle, std::string>(), py::arg("communicator"),
           py::arg("array"), py::arg("op"), py::arg("tag") = "")
      .def("__call__", &AllreducePlan::operator());
}

}  // namespace ringred
