// The kernels of a communicator in tests: emulated, on the streams of the fake driver, with device addresses translated
// as the process of a rank sees them.
//
// Invariant: a kernel uses memory that its process can access when it is launched and when it runs; anything else is a
// mistake of the machine. A launch counts as a call of the driver, "launch", and fails where a test wants it to.
#pragma once

#include <memory>

#include "csrc/cuda/kernels.h"
#include "tests/cuda/fake_machine.h"

namespace ringred::check {

std::unique_ptr<Kernels> emulated_kernels(FakeProcess& process);

}  // namespace ringred::check
