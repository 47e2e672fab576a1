// The engine for Python: it keeps arrays alive while operations use them.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "csrc/python/arrays.h"
#include "csrc/queue/engine.h"

namespace ringred {

// Arrays of one operation, and what keeps their memory: a tensor may exchange its storage for another meanwhile, so the
// storage is kept, and it may not be resized from now on, since it would move. (A numpy array refuses that by itself.)
// Destroyed with the GIL held.
class KeptArrays {
 public:
  const ArrayView& add(pybind11::handle array, ArrayView::Access access);

  // What keeps the memory of a tensor, which may not be resized from now on; nothing for other arrays.
  static pybind11::object storage_of(pybind11::handle array);

 private:
  std::vector<std::unique_ptr<ArrayView>> views_;
  std::vector<pybind11::object> objects_;
};

// The operator of a number that Python passes; throws a usage error for others.
Op op_numbered(int number);

// The engine's thread never takes the GIL, so arrays of operations that are done are let go at the next submission.
class PythonEngine {
 public:
  explicit PythonEngine(Engine::Setup setup);
  ~PythonEngine();

  Engine* operator->() { return engine_.get(); }

  std::shared_ptr<Operation> submit(std::uint32_t group, Request request, KeptArrays kept, bool waits);
  void set_stack_source(int signal, int descriptor);

  // Drops what operations hold that have ended; the next submission does the same.
  void let_go();

 private:
  void check_free(const Request& request);

  struct InUse {
    std::shared_ptr<Operation> operation;
    KeptArrays kept;
  };
  // Where stacks come from, read by the engine's thread; the descriptor first.
  struct StackSource {
    std::atomic<int> descriptor{-1}, signal{0};
  };
  std::shared_ptr<StackSource> stack_source_ = std::make_shared<StackSource>();
  std::unique_ptr<Engine> engine_;
  // Where outputs of operations lie that are in flight, or were a moment ago; by their ends.
  struct Output {
    const std::byte* begin;
    std::shared_ptr<Operation> operation;
  };

  // Guarded by the GIL.
  std::deque<InUse> in_use_;
  std::map<const std::byte*, Output> outputs_;
  std::size_t swept_ = 0;  // how many were in use after the last sweep
};

}  // namespace ringred
