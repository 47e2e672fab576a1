// Finding the driver and a device: what is wrong with either is said in a sentence with a remedy.
#include "csrc/cuda/driver.h"

#include <map>
#include <string>

#include "csrc/base/error.h"
#include "csrc/cuda/device.h"
#include "tests/cuda/fakes.h"

using namespace ringred;
using namespace ringred::cuda;
using namespace ringred::check;

namespace {

// A library with the fake functions, but for one symbol.
Functions bind_without(const std::string& missing) {
  std::map<std::string, void*> symbols;
  const Functions functions = fake_functions();
  for_each_function(functions, [&](const auto& function, const char* symbol) {
    symbols[symbol] = reinterpret_cast<void*>(function);
  });
  return bind_functions([&](const char* symbol) { return symbol == missing ? nullptr : symbols.at(symbol); });
}

}  // namespace

TEST("a process without the driver's library is told so") {
  CHECK_THROWS(Driver::load(oldest_driver, "libcuda-that-is-not-there.so.1"),
               "could not be loaded (libcuda-that-is-not-there.so.1: cannot open shared object file");
  CHECK_THROWS(Driver::load(oldest_driver, "libcuda-that-is-not-there.so.1"), "start a container with --gpus all");
}

TEST("every function is bound under its symbol, and a missing one is named") {
  const Functions bound = bind_without("");
  const Functions expected = fake_functions();
  CHECK(std::memcmp(&bound, &expected, sizeof bound) == 0);
  CHECK_THROWS(bind_without("cuStreamWriteValue32_v2"),
               "CUDA 11.7 or newer: libcuda.so.1 lacks cuStreamWriteValue32_v2");
}

TEST("a driver that is too old says what is needed and what was found") {
  FakeRanks ranks(1);
  const InProcess inside(ranks[0]);
  CHECK_THROWS(Driver(fake_functions(), 13010), "needs an NVIDIA driver for CUDA 13.1 or newer: this one is for 13.0");
  CHECK_EQ(Driver(fake_functions(), 13000).version(), 13000);
  CHECK_EQ(ranks[0].calls_of("cuInit"), 1);  // none of it where the version is wrong
}

TEST("a machine without devices, a forked process and others get remedies") {
  FakeMachine machine(0);
  FakeProcess process(machine, 0, {});
  const InProcess inside(process);
  CHECK_THROWS(fake_driver(),
               "CUDA_ERROR_NO_DEVICE (in the words of the driver). Look at nvidia-smi and at CUDA_VISIBLE");
  process.fail("cuInit", Result::not_initialized);
  CHECK_THROWS(fake_driver(), "start it with 'spawn'");
  process.fail("cuInit", Result::stub_library);
  CHECK_THROWS(fake_driver(), "LD_LIBRARY_PATH");
  process.fail("cuInit", Result::unknown);
  CHECK_THROWS(fake_driver(), "CUDA could not be started: CUDA_ERROR_UNKNOWN");
}

TEST("a device is known by its UUID, and must exist and be of compute capability 8.0") {
  FakeMachine machine(3);
  machine.devices[1].capability = 75;
  FakeProcess process(machine, 0, {2, 1});
  const InProcess inside(process);
  const DriverPointer driver = fake_driver();
  const DeviceFacts facts = device_facts(*driver, 0);
  CHECK(facts.uuid == machine.devices[2].uuid);
  CHECK_EQ(words(facts.uuid), "GPU-00000000-0000-0000-0000-000000000003");
  CHECK_EQ(facts.words(), "device 0 (Fake GPU, compute capability 9.0)");
  CHECK(facts.has_legacy_ipc && facts.has_posix_descriptors && facts.can_register_host_memory);
  machine.devices[2].legacy_ipc = false;
  CHECK(!device_facts(*driver, 0).has_legacy_ipc);
  machine.devices[2].knows_ipc_attribute = false;  // an older driver: then trying shows it
  CHECK(device_facts(*driver, 0).has_legacy_ipc);
  CHECK_EQ(ordinal_of(*driver, machine.devices[1].uuid).value(), 1);
  CHECK(!ordinal_of(*driver, machine.devices[0].uuid).has_value());
  CHECK_THROWS(device_facts(*driver, 1),
               "need compute capability 8.0 or newer: this is device 1 (Fake GPU, compute capa");
  CHECK_THROWS(device_facts(*driver, 2), "A device must be from 0 to 1 in this process: it is 2. Look at CUDA_VISIBLE");
  CHECK_THROWS(device_facts(*driver, -1), "it is -1");
}

TEST("an error after a failed kernel says that the context is lost") {
  FakeRanks ranks(1);
  const InProcess inside(ranks[0]);
  const DriverPointer driver = fake_driver();
  CHECK_THROWS(driver->fail(static_cast<Result>(700), "record an event"),
               "CUDA could not record an event: error 700. A kernel that ran before has failed");
  CHECK_THROWS(driver->fail(Result::out_of_memory, "allocate 1 GiB"), "Free device memory");
}

TEST("whatever call fails while a device is opened, nothing is left open") {
  const int calls = fail_each_call(1, [](FakeProcess&, FakeMachine&) {
    const Gpu gpu = Gpu::open(fake_driver(), 0);
    const CurrentContext current(gpu);
  });
  CHECK(calls > 10);
}
