#include "csrc/cuda/host_wait.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "csrc/base/text.h"
#include "csrc/cuda/capture.h"

namespace ringred::cuda {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// As in csrc/base/wait.cpp: how long to yield before sleeping, and how often to look around.
constexpr auto yield_time = microseconds(300);
constexpr auto look_interval = std::chrono::milliseconds(100);

// A question costs about a microsecond. Between two, at most this passes: it is what a long wait may be late by.
constexpr auto shortest_sleep = microseconds(20), longest_sleep = microseconds(500);

// The part of a wait for which locks are kept: on a core of its own it asks without a pause.
bool ask(FunctionRef<bool()> ready, Clock::duration duration, bool yields) {
  const auto start = Clock::now();
  do {
    if (ready()) return true;
    if (yields)
      sched_yield();
    else
      relax_processor();
  } while (Clock::now() - start < duration);
  return false;
}

struct Leave {
  WaitHooks* hooks;
  ~Leave() noexcept(false) {  // see WaitHooks::leave
    if (hooks != nullptr) hooks->leave();
  }
};

}  // namespace

void HostWait::until(FunctionRef<bool()> ready, FunctionRef<void()> look_around,
                     FunctionRef<std::string()> sentence) const {
  const auto start = Clock::now();
  if (ask(ready, settings.spin, !settings.cores_suffice)) return;
  if (hooks != nullptr) hooks->enter();
  const Leave leave{hooks};
  if (ask(ready, yield_time, true)) return;
  bool reported = false;
  auto next_look = Clock::now() + look_interval;
  for (auto sleep = shortest_sleep; !ready(); sleep = std::min(2 * sleep, longest_sleep)) {
    std::this_thread::sleep_for(sleep);
    if (Clock::now() < next_look) continue;
    next_look = Clock::now() + look_interval;
    if (hooks != nullptr && !hooks->poll())
      throw Error(ErrorKind::interrupted, "interrupted by a signal while " + sentence());
    look_around();
    const double waited = std::chrono::duration<double>(Clock::now() - start).count();
    if (settings.timeout_seconds > 0 && waited > settings.timeout_seconds && !ready())
      throw overdue(sentence(), settings.timeout_seconds);
    if (settings.stall_seconds > 0 && waited > settings.stall_seconds && !reported && hooks != nullptr) {
      reported = true;
      hooks->report(sentence() + ", for " + in_seconds(settings.stall_seconds) + " s so far.");
    }
  }
}

Error overdue(const std::string& sentence, double seconds) {
  return Error(ErrorKind::timeout, sentence + ", for more than RINGRED_TIMEOUT_SECONDS=" + in_seconds(seconds) +
                                       ". Look at what that rank does (py-spy dump, nvidia-smi), or raise the limit.");
}

bool is_over(const Driver& driver, Event event) {
  const RelaxedCapture relaxed(driver);
  const Result result = driver->event_query(event);
  if (result == Result::not_ready) return false;
  driver.check(result, "finish work on a stream");
  return true;
}

}  // namespace ringred::cuda
