// What a long wait does for Python: it gives up the GIL, looks at signals, and reports stalls on stderr.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdio>
#include <string>

#include "csrc/base/wait.h"

namespace ringred {

// Invariant: state_ is the thread's state exactly while the GIL is given up. One thread at a time, as the communicator.
class GilHooks : public WaitHooks {
 public:
  explicit GilHooks(bool reports) : reports_(reports) {}

  void enter() override {
    if (depth_++ == 0) state_ = PyEval_SaveThread();
  }
  void leave() override {
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
    if (reports_) std::fprintf(stderr, "ringred: %s\n", sentence.c_str());
  }

 private:
  const bool reports_;
  int depth_ = 0;
  PyThreadState* state_ = nullptr;
};

}  // namespace ringred
