#include "csrc/python/cuda/communicator.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/base/lifeline.h"
#include "csrc/base/mix.h"
#include "csrc/base/settings.h"
#include "csrc/cuda/communicator.h"
#include "csrc/python/gil_hooks.h"

namespace py = pybind11;

namespace ringred::cuda {
namespace {

Meeting meeting_of(py::function gather) {
  return [gather = std::move(gather)](std::span<const std::byte> mine) {
    const auto* const data = reinterpret_cast<const char*>(mine.data());
    std::vector<std::byte> all;
    for (const py::handle one : gather(py::bytes(data, mine.size()))) {
      const auto bytes = one.cast<std::string_view>();
      const auto* const begin = reinterpret_cast<const std::byte*>(bytes.data());
      all.insert(all.end(), begin, begin + bytes.size());
    }
    return all;
  };
}

using Environment = std::map<std::string, std::string>;

WaitSettings wait_settings(const Environment& environment, bool cores_suffice) {
  const Settings settings = read_settings([&](std::string_view name) -> std::optional<std::string> {
    const auto found = environment.find(std::string(name));
    return found == environment.end() ? std::nullopt : std::optional(found->second);
  });
  return {cores_suffice, std::chrono::microseconds(settings.spin_microseconds), settings.timeout_seconds,
          settings.stall_seconds};
}

// Looked at during long waits: which rank's process has ended.
std::function<void()> watch(std::vector<int> lifelines) {
  return [lifelines = std::move(lifelines)] {
    for (std::size_t rank = 0; rank < lifelines.size(); ++rank)
      if (ringred::has_ended(lifelines[rank]))
        throw Error(ErrorKind::peer_lost, "the process of rank " + std::to_string(rank) + " has ended");
  };
}

DType dtype_of(const std::string& name) {
  if (const auto dtype = dtype_named(name)) return *dtype;
  fail_usage("The dtype must be one that ringred knows: it is " + name + ".");
}

Op op_of(int number) {
  for (const OpInfo& row : op_table)
    if (static_cast<int>(row.op) == number) return row.op;
  fail_usage("op must be Sum, Average, Min, Max or Product: it is number " + std::to_string(number) + ".");
}

// Text as a number of 48 bits; "" is 0.
std::uint64_t tag_of(const std::string& text) {
  std::uint64_t hash = 0;
  for (const char letter : text) hash = mix(hash + 1, static_cast<unsigned char>(letter));
  return hash >> 16;
}

// The communicator and what its waits need; all of it under the GIL, which long waits give up.
class PythonCommunicator {
 public:
  PythonCommunicator(const OpenDevice& device, int rank, py::function gather,
                     const std::vector<std::uintptr_t>& host_blocks, std::vector<int> lifelines, bool cores_suffice,
                     const Environment& environment)
      : hooks_(report) {
    DeviceCommunicator::Setup setup;
    setup.gpu = device.gpu;
    setup.kernels = device.kernels;
    setup.self = device.self;
    setup.rank = rank;
    setup.size = static_cast<int>(host_blocks.size());
    setup.meeting = meeting_of(std::move(gather));
    for (const std::uintptr_t address : host_blocks) setup.host_blocks.push_back(reinterpret_cast<std::byte*>(address));
    setup.wait = {wait_settings(environment, cores_suffice), &hooks_};
    setup.look_around = watch(std::move(lifelines));
    communicator_.emplace(std::move(setup));
  }

  DeviceCommunicator& operator*() { return *communicator_; }
  DeviceCommunicator* operator->() { return &*communicator_; }

  // Of memory that all ranks have at the same offset, the address of this rank's part.
  DevicePointer allocate(std::size_t bytes) {
    regions_.push_back(&communicator_->allocate(bytes));
    return regions_.back()->address();
  }

  // A vector in place in such memory is reduced without copies. It lies in it on all ranks, or they differ.
  void allreduce(const CallerStream& caller, DevicePointer input, DevicePointer output, const Reduction& reduction) {
    const std::size_t bytes = reduction.count * info(reduction.dtype).size;
    const auto holds = [&](const SymmetricMemory* region) {
      return bytes <= region->bytes() && input >= region->address() &&
             input - region->address() <= region->bytes() - bytes;
    };
    const auto found = std::find_if(regions_.begin(), regions_.end(), holds);
    if (input != output || found == regions_.end() || reduction.algorithm)
      return communicator_->allreduce(caller, input, output, reduction);
    communicator_->allreduce_symmetric(caller, **found, input - (*found)->address(), reduction);
  }

 private:
  static void report(const std::string& sentence) {
    if (!sentence.empty()) std::fprintf(stderr, "ringred: %s\n", sentence.c_str());
  }

  GilHooks hooks_;
  std::optional<DeviceCommunicator> communicator_;
  std::vector<const SymmetricMemory*> regions_;  // of the communicator
};

// Streams are numbered as in __cuda_array_interface__.
CallerStream stream_of(std::int64_t number) {
  const std::optional<CallerStream> stream = CallerStream::from_protocol(number);
  if (!stream) fail_usage("A collective is ordered by a stream: give one, 1 for the default stream.");
  return *stream;
}

void enqueue_allreduce(PythonCommunicator& self, std::int64_t stream, std::uint64_t input, std::uint64_t output,
                       std::size_t count, const std::string& dtype, int op, double prescale, double postscale,
                       const std::optional<std::string>& algorithm, const std::string& tag) {
  Reduction reduction{count, dtype_of(dtype), op_of(op), prescale, postscale};
  reduction.tag = tag_of(tag);
  if (algorithm) {
    reduction.algorithm = algorithm_named(*algorithm);
    if (!reduction.algorithm) fail_usage("There is no algorithm of the name " + *algorithm + ".");
    self->prepare(*reduction.algorithm);
  }
  self.allreduce(stream_of(stream), input, output, reduction);
}

}  // namespace

void bind_communicator(py::module_& module, std::function<OpenDevice(int ordinal)> open) {
  module.def("check_device", [open](int device) { open(device); }, py::arg("device"));
  const auto make = [open = std::move(open)](int device, int rank, py::function gather,
                                             const std::vector<std::uintptr_t>& host_blocks, std::vector<int> lifelines,
                                             bool cores_suffice, const Environment& environment) {
    return std::make_unique<PythonCommunicator>(open(device), rank, std::move(gather), host_blocks,
                                                std::move(lifelines), cores_suffice, environment);
  };
  module.def("host_bytes", [](int size) { return DeviceCommunicator::host_bytes(size, Sizes{}); }, py::arg("size"));
  py::class_<PythonCommunicator>(module, "Communicator")
      .def(py::init(make), py::arg("device"), py::arg("rank"), py::arg("gather"), py::arg("host_blocks"),
           py::arg("lifelines"), py::arg("cores_suffice"), py::arg("environment"))
      .def_property_readonly("is_direct", [](PythonCommunicator& self) { return self->is_direct(); })
      .def_property_readonly("waits_on_host", [](PythonCommunicator& self) { return self->waits_on_host(); })
      .def_property_readonly("sentence", [](PythonCommunicator& self) { return self->sentence(); })
      .def("allreduce", &enqueue_allreduce, py::arg("stream"), py::arg("input"), py::arg("output"), py::arg("count"),
           py::arg("dtype"), py::arg("op"), py::arg("prescale"), py::arg("postscale"),
           py::arg("algorithm") = py::none(), py::arg("tag") = "")
      .def("allocate", &PythonCommunicator::allocate, py::arg("bytes"))
      .def("wait", [](PythonCommunicator& self) { self->await(); })
      .def("check", [](PythonCommunicator& self) { self->check(); })
      .def("end", [](PythonCommunicator& self) { self->end(); })
      .def(
          "abandon", [](PythonCommunicator& self, const std::string& reason) { self->abandon(reason); },
          py::arg("reason"));
}

}  // namespace ringred::cuda
