#include "csrc/python/python_engine.h"

#include <algorithm>

#include "csrc/python/stacks.h"

namespace py = pybind11;

namespace ringred {
const ArrayView& KeptArrays::add(py::handle array, ArrayView::Access access) {
  views_.push_back(std::make_unique<ArrayView>(array, access));
  objects_.push_back(py::reinterpret_borrow<py::object>(array));
  if (py::object storage = storage_of(array)) objects_.push_back(std::move(storage));
  return *views_.back();
}

// torch has one way to forbid it: it does for a storage that numpy has seen.
py::object KeptArrays::storage_of(py::handle array) {
  // What has a buffer is no tensor; asking it for an attribute that it lacks costs an exception.
  if (PyObject_CheckBuffer(array.ptr()) != 0 || !py::hasattr(array, "untyped_storage")) return {};
  py::object storage = array.attr("untyped_storage")();
  if (storage.attr("resizable")().cast<bool>()) {
    const py::module_ torch = py::module_::import("torch");
    torch.attr("empty")(0, py::arg("dtype") = torch.attr("uint8"), py::arg("device") = "cpu")
        .attr("set_")(storage)
        .attr("numpy")();
  }
  return storage;
}

Op op_numbered(int number) {
  for (const OpInfo& row : op_table)
    if (static_cast<int>(row.op) == number) return row.op;
  fail_usage("op must be Sum, Average, Min, Max or Product of ringred: it has the number " + std::to_string(number) +
             ".");
}

PythonEngine::PythonEngine(Engine::Setup setup) {
  setup.stacks = [source = stack_source_] {
    const int signal = source->signal.load(std::memory_order_acquire);
    return python_stacks(signal, source->descriptor.load(std::memory_order_relaxed));
  };
  engine_ = std::make_unique<Engine>(std::move(setup));
}

PythonEngine::~PythonEngine() {
  if (engine_->is_abandoned()) {
    static_cast<void>(engine_.release());  // threads of the parent may hold its locks for ever
    return;
  }
  const py::gil_scoped_release unlocked;
  engine_.reset();
}

std::shared_ptr<Operation> PythonEngine::submit(std::uint32_t group, Request request, KeptArrays kept, bool waits) {
  let_go();
  check_free(request);
  auto operation = engine_->submit(group, std::move(request), waits);
  in_use_.push_back({operation, std::move(kept)});
  for (const Tensor& tensor : operation->request.tensors)
    if (const std::byte* end = operation->request.end_of_output(tensor)) outputs_[end] = {tensor.output, operation};
  return operation;
}

// Two operations in flight that write to one array would give what chance decides, and other things on other ranks.
void PythonEngine::check_free(const Request& request) {
  for (const Tensor& tensor : request.tensors) {
    const std::byte* end = request.end_of_output(tensor);
    for (auto other = outputs_.upper_bound(tensor.output); other != outputs_.end() && other->second.begin < end;
         ++other)
      if (!other->second.operation->done())
        fail_usage("An array is the output of one operation at a time: this one is that of '" +
                   other->second.operation->request.name + "', which is in flight. Synchronize it first.");
  }
}

void PythonEngine::let_go() {
  std::vector<InUse> done;  // destroyed last: what goes with it may submit
  const auto take = [&](InUse& one) {
    for (const Tensor& tensor : one.operation->request.tensors) {
      const auto known = outputs_.find(one.operation->request.end_of_output(tensor));
      if (known != outputs_.end() && known->second.operation == one.operation) outputs_.erase(known);
    }
    done.push_back(std::move(one));
  };
  for (; !in_use_.empty() && in_use_.front().operation->done(); in_use_.pop_front()) take(in_use_.front());
  if (in_use_.size() <= 2 * swept_ + 64) return;
  const auto first_done =
      std::stable_partition(in_use_.begin(), in_use_.end(), [](const InUse& one) { return !one.operation->done(); });
  std::for_each(first_done, in_use_.end(), take);
  in_use_.erase(first_done, in_use_.end());
  swept_ = in_use_.size();
}

void PythonEngine::set_stack_source(int signal, int descriptor) {
  stack_source_->descriptor.store(descriptor, std::memory_order_relaxed);
  stack_source_->signal.store(signal, std::memory_order_release);
}

}  // namespace ringred
