// Operations and their results as Python objects.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>
#include <vector>

#include "csrc/python/python_engine.h"

namespace ringred {

// The memory that an allgather or alltoall brought, as a writable buffer of bytes. It belongs to the operation.
class ResultView {
 public:
  ResultView(std::shared_ptr<Operation> operation, std::size_t index)
      : operation_(std::move(operation)), index_(index) {}
  std::size_t size() const { return operation_->results[index_].bytes; }
  pybind11::buffer_info buffer() {
    Result& result = operation_->results[index_];
    return pybind11::buffer_info(reinterpret_cast<unsigned char*>(result.data.get()),
                                 static_cast<pybind11::ssize_t>(result.bytes));
  }

 private:
  std::shared_ptr<Operation> operation_;
  std::size_t index_;
};

struct PythonOperation {
  std::shared_ptr<PythonEngine> engine;
  std::shared_ptr<Operation> operation;

  Operation* operator->() const { return operation.get(); }

  std::vector<std::pair<ResultView, std::vector<std::int64_t>>> results() const {
    std::vector<std::pair<ResultView, std::vector<std::int64_t>>> all;
    for (std::size_t i = 0; operation->done() && i < operation->results.size(); ++i)
      all.emplace_back(ResultView(operation, i), operation->results[i].rows);
    return all;
  }
};

}  // namespace ringred
