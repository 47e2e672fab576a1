// What a long wait does for Python: it gives up the GIL, looks at signals, and has stalls reported.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <string>
#include <utility>

#include "csrc/base/wait.h"

namespace ringred {

// Invariant: state_ is the thread's state exactly while the GIL is given up. One thread at a time, as the communicator.
class GilHooks : public WaitHooks {
 public:
  // `stall(sentence)` is called when a wait becomes a stall, and `stall("")` when it is over; without the GIL.
  using Stall = std::function<void(const std::string&)>;
  explicit GilHooks(Stall stall = {}) : stall_(std::move(stall)) {}

  void enter() override {
    if (depth_++ == 0) state_ = PyEval_SaveThread();
  }
  // Python ends a thread that takes the GIL while the interpreter ends, by unwinding its stack from here.
  void leave() override {
    if (std::exchange(stalled_, false)) stall_({});
    if (--depth_ == 0) PyEval_RestoreThread(state_);
  }
  // Signal handlers run on Python's main thread only; on others this does nothing.
  bool poll() override {
    PyEval_RestoreThread(state_);
    const bool go_on = PyErr_CheckSignals() == 0;
    state_ = PyEval_SaveThread();
    return go_on;
  }
  void report(const std::string& sentence) override {
    if (!stall_) return;
    stalled_ = true;
    stall_(sentence);
  }

 private:
  const Stall stall_;
  bool stalled_ = false;
  int depth_ = 0;
  PyThreadState* state_ = nullptr;
};

}  // namespace ringred
