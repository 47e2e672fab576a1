// Waiting on the host for what a device does: a loop of questions, with the manners of csrc/base/wait.h: short waits
// keep all locks; long ones tell the hooks, look for signals and lost peers every 100 ms, report a stall, and end at
// the deadline with a sentence that says who waits for what.
//
// A device rings no doorbell, so a long wait sleeps for up to half a millisecond between questions.
#pragma once

#include <string>

#include "csrc/base/error.h"
#include "csrc/base/function_ref.h"
#include "csrc/base/wait.h"
#include "csrc/cuda/driver.h"

namespace ringred::cuda {

struct HostWait {
  WaitSettings settings;
  WaitHooks* hooks = nullptr;

  // Returns when ready() is true. look_around() throws where waiting has become senseless, as when a peer is gone.
  // `sentence()` is of the form "rank 0 waits for rank 2 to ...". Throws timeout, interrupted and whatever ready() and
  // look_around() throw.
  void until(FunctionRef<bool()> ready, FunctionRef<void()> look_around, FunctionRef<std::string()> sentence) const;
};

// The error of a wait that has lasted for `seconds`, its limit.
Error overdue(const std::string& sentence, double seconds);

// Whether what was recorded last is over. May be asked while some thread captures a graph. Throws a system error where
// the work before it has failed.
bool is_over(const Driver& driver, Event event);

}  // namespace ringred::cuda
