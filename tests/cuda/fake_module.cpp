// The binding of the device's communicator, over the fake driver and emulated kernels: a Python module whose ranks are
// threads of one process, each in a process of the fake machine (module_test.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "csrc/python/cuda/communicator.h"
#include "csrc/python/errors.h"
#include "tests/cuda/emulated_kernels.h"
#include "tests/cuda/fake_call.h"
#include "tests/cuda/fakes.h"

namespace py = pybind11;

namespace ringred::check {
namespace {

OpenDevice open_device(int ordinal) {
  const auto number = static_cast<std::uint64_t>(here().number) + 1;
  return {Gpu::open(fake_driver(), ordinal), emulated_kernels(here()), {number, 1}};
}

// Memory that all ranks of the machine see, at whole pages.
struct HostBlock {
  explicit HostBlock(std::size_t bytes) : room(bytes / sizeof(Page) + 1) {}
  struct alignas(4096) Page {
    std::byte bytes[4096];
  };
  std::vector<Page> room;
};

class Machine {
 public:
  Machine(int size, bool has_peers) : ranks_(size) {
    if (!has_peers) ranks_.machine.peers.clear();
  }

  void enter(int rank) { inside().push_back(std::make_unique<InProcess>(ranks_[rank])); }
  void leave() { inside().pop_back(); }

  std::uint64_t allocate(std::size_t bytes) {
    const Gpu gpu = Gpu::open(fake_driver(), 0);
    const CurrentContext current(gpu);
    DevicePointer address = 0;
    gpu.driver->check((*gpu.driver)->memory_allocate(&address, bytes), "allocate");
    return address;
  }
  void write(std::uint64_t address, const py::bytes& values) {
    const std::string_view bytes = values;
    std::memcpy(here().host(address, bytes.size()), bytes.data(), bytes.size());
  }
  py::bytes read(std::uint64_t address, std::size_t bytes) {
    return {reinterpret_cast<const char*>(here().host(address, bytes)), bytes};
  }
  std::string mistakes() { return ranks_.machine.mistakes(); }

 private:
  static std::vector<std::unique_ptr<InProcess>>& inside() {
    thread_local std::vector<std::unique_ptr<InProcess>> scopes;
    return scopes;
  }

  FakeRanks ranks_;
};

}  // namespace
}  // namespace ringred::check

PYBIND11_MODULE(_fake_cuda, module) {
  using namespace ringred::check;
  ringred::bind_errors(module);
  ringred::cuda::bind_communicator(module, open_device);
  py::class_<HostBlock>(module, "HostBlock")
      .def(py::init<std::size_t>())
      .def_property_readonly("address",
                             [](const HostBlock& self) { return reinterpret_cast<std::uintptr_t>(self.room.data()); });
  py::class_<Machine>(module, "Machine")
      .def(py::init<int, bool>(), py::arg("size"), py::arg("has_peers"))
      .def("enter", &Machine::enter)
      .def("leave", &Machine::leave)
      .def("allocate", &Machine::allocate)
      .def("write", &Machine::write)
      .def("read", &Machine::read)
      .def("mistakes", &Machine::mistakes);
}
