// What the tests of the CUDA part's host side share: processes on a machine of their own, and what they must leave.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/cuda/device.h"
#include "tests/check.h"
#include "tests/cuda/fake_machine.h"

namespace ringred::check {

inline DriverPointer fake_driver() {
  return std::make_shared<const Driver>(fake_functions(), oldest_driver);
}

// One process for each rank, each with the device of its number; or all with device 0.
struct FakeRanks {
  FakeMachine machine;
  std::vector<std::unique_ptr<FakeProcess>> processes;

  explicit FakeRanks(int size, bool one_device = false) : machine(one_device ? 1 : size) {
    for (int rank = 0; rank < size; ++rank)
      processes.push_back(std::make_unique<FakeProcess>(machine, rank, std::vector<int>{one_device ? 0 : rank}));
  }
  FakeProcess& operator[](int rank) { return *processes[static_cast<std::size_t>(rank)]; }
  int size() const { return static_cast<int>(processes.size()); }
};

// Makes every driver call fail in turn: `scenario(process, number)` runs with its call of that number failing, may
// throw a ringred error, and must leave nothing open. Returns how many calls there are.
template <class Scenario>
int fail_each_call(int device_count, Scenario&& scenario) {
  for (int number = 0;; number += sanitized ? 3 : 1) {
    FakeMachine machine(device_count);
    FakeProcess process(machine, 0, {0});
    const InProcess inside(process);
    process.fail_call(number);
    try {
      scenario(process, machine);
    } catch (const Error&) {
    }
    process.drain();
    const std::string left = process.open_things() + machine.mistakes();
    if (!left.empty()) report("call", number, "failed, and there are left: " + left);
    if (process.calls() <= number) return number;
  }
}

}  // namespace ringred::check
