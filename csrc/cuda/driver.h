// The CUDA driver of this process, found at run time on first use: a process that never loads it never touches libcuda.
//
// Invariant: whoever has a Driver has all functions of the table, cuInit has succeeded, and the driver is new enough.
#pragma once

#include <memory>
#include <string>

#include "csrc/base/function_ref.h"
#include "csrc/cuda/functions.h"

namespace ringred::cuda {

// CUDA 11.7: the first whose stream memory operations need no option of the kernel module. Device code may need more:
// it asks for the version that it was compiled with.
inline constexpr int oldest_driver = 11070;

class Driver {
 public:
  // Throws a system error where there is no driver, or none that is usable: what is needed, what was found, the remedy.
  static std::shared_ptr<const Driver> load(int needed_version = oldest_driver,
                                            const std::string& library = "libcuda.so.1");

  // The same over any table.
  Driver(const Functions& functions, int needed_version);

  const Functions* operator->() const { return &functions_; }
  int version() const { return version_; }  // 1000 times the major number and 10 times the minor one

  // "CUDA_ERROR_MAP_FAILED (mapping of buffer object failed)"
  std::string words(Result result) const;

  // Throws a system error unless `result` is success; `what` completes "CUDA could not ...".
  void check(Result result, const char* what) const {
    if (result != Result::success) fail(result, what);
  }
  [[noreturn]] void fail(Result result, const std::string& what) const;

 private:
  const Functions functions_;
  int version_ = 0;
};

using DriverPointer = std::shared_ptr<const Driver>;

// The table of the functions that `find` has under their symbols. Throws a system error naming those that it has not.
Functions bind_functions(FunctionRef<void*(const char* symbol)> find);

// Whether a context is of no use after an error: a kernel failed, or the hardware.
bool is_context_lost(Result result);

// "12.4" for 12040.
std::string version_text(int version);

}  // namespace ringred::cuda
