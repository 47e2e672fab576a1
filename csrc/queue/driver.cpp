#include "csrc/queue/driver.h"

#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <climits>
#include <utility>

#include "csrc/base/futex.h"
#include "csrc/queue/bell.h"

namespace ringred {
namespace {

// The interval at which signals, peers' lives and deadlines are looked at.
constexpr std::int64_t look_interval = 100'000'000;
// How long after the last work the thread still wakes up for a look: steady work is not interrupted by wake-ups for
// each operation.
constexpr std::int64_t settling_time = 1'000'000'000;
// How long a driver without a core of its own yields before it sleeps: some turns of the others.
constexpr std::int64_t yield_time = 100'000;
// How long a driver sleeps at most while the network has something to do, which rings nobody's bell; and how long it
// yields before.
constexpr std::int64_t poll_interval = 50'000;
constexpr std::int64_t network_yield_time = 100'000;
// How long a driver with a core of its own spins before it yields as well: the answer of a peer that runs takes less.
constexpr std::int64_t pure_spin_time = 5'000;

struct SignalsBlocked {
  sigset_t before;
  SignalsBlocked() {
    sigset_t every;
    sigfillset(&every);
    pthread_sigmask(SIG_BLOCK, &every, &before);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
};

}  // namespace

Driver::Exclusive::Exclusive(Driver& driver) : driver_(driver) {
  driver_.requests_.fetch_add(1, std::memory_order_seq_cst);
  ring(driver_.bell_);
  driver_.role_.lock();
}

Driver::Exclusive::~Exclusive() {
  driver_.role_.unlock();
  driver_.requests_.fetch_sub(1, std::memory_order_seq_cst);
  ring(driver_.bell_);
}

// Signals are for the host language's threads.
void Driver::start() {
  const SignalsBlocked blocked;
  thread_ = std::thread([this] { run(); });
}

void Driver::join() {
  bell_.state.store(EngineBell::awake, std::memory_order_seq_cst);
  futex_wake(bell_.state, INT_MAX, EngineBell::engine_sleeps | EngineBell::caller_sleeps);
  if (thread_.joinable()) thread_.join();
}

void Driver::abandon() {
  if (thread_.joinable()) new std::thread(std::move(thread_));  // it runs in the parent; there is nothing to join here
}

void Driver::notice(bool at_once) {
  if (sleeps_for_ever_.load(std::memory_order_seq_cst)) {
    // Whatever the bell says: a peer may have died between taking it and waking the thread.
    bell_.state.store(EngineBell::awake, std::memory_order_seq_cst);
    futex_wake(bell_.state, INT_MAX, EngineBell::engine_sleeps | EngineBell::caller_sleeps);
  } else if (at_once) {
    ring(bell_);
  }
}

// One caller's wait, with the role or without.
class Driver::Caller {
 public:
  Caller(Driver& driver, Operation& operation, WaitHooks& hooks)
      : driver_(driver), operation_(operation), hooks_(hooks), next_poll_(monotonic_now() + look_interval) {}

  void run() {
    while (!operation_.done()) {
      driver_.drivers_.fetch_add(1, std::memory_order_seq_cst);
      if (take_role()) {
        const std::lock_guard role(driver_.role_, std::adopt_lock);
        drive();
      } else {
        driver_.drivers_.fetch_sub(1, std::memory_order_seq_cst);
        sleep();
      }
      poll();
    }
  }

 private:
  // How long a caller that has given way sleeps before it tries again.
  static constexpr std::int64_t give_way_time = 1'000'000;

  bool must_give_way() const {
    return driver_.stopping_.load(std::memory_order_seq_cst) || driver_.requests_.load(std::memory_order_seq_cst) > 0;
  }

  // Takes the role at once, or from the engine's thread at its next step. Not from another caller, who keeps it.
  bool take_role() {
    if (must_give_way()) return false;
    if (driver_.role_.try_lock()) return true;
    driver_.callers_.fetch_add(1, std::memory_order_seq_cst);
    bool taken = false;  // it may be, with the operation done just before
    pause(patience(false), [&] { return operation_.done() || (taken = driver_.role_.try_lock()); });
    driver_.callers_.fetch_sub(1, std::memory_order_seq_cst);
    return taken;
  }

  // The one who drives, or the engine's thread, does not know yet what this one has submitted.
  void sleep() {
    if (operation_.done()) return;
    note_awaited();
    ring(driver_.bell_);
    operation_.sleep(must_give_way() ? monotonic_now() + give_way_time : next_poll_);
  }

  // With the role, until the operation is done or the hooks want to be asked.
  void drive() {
    EngineBell& bell = driver_.bell_;
    bell.state.store(EngineBell::awake, std::memory_order_seq_cst);
    const auto moves = [&] { return operation_.done() || driver_.driven_.advance(true) || operation_.done(); };
    while (!operation_.done() && !must_give_way() && monotonic_now() < next_poll_) {
      if (moves() || pause(patience_when_driving(), moves)) continue;
      note_awaited();
      bell.state.store(EngineBell::caller_sleeps, std::memory_order_seq_cst);  // (1)
      if (!moves() && !must_give_way()) {                                      // (2)
        const std::int64_t until =
            driver_.driven_.polls() ? std::min(next_poll_, monotonic_now() + poll_interval) : next_poll_;
        const Slept slept = futex_sleep(bell.state, EngineBell::caller_sleeps, EngineBell::caller_sleeps, until);
        if (slept == Slept::signalled) next_poll_ = 0;
      }
      bell.state.store(EngineBell::awake, std::memory_order_seq_cst);
    }
    if (!operation_.done()) driver_.look(true);
    driver_.drivers_.fetch_sub(1, std::memory_order_seq_cst);
    if (!driver_.stopping_.load(std::memory_order_seq_cst)) driver_.hand_over();
  }

  // How long a wait is worth staying awake.
  std::int64_t patience(bool polls) const {
    return polls ? network_yield_time : driver_.setup_.cores_suffice ? driver_.setup_.spin_nanoseconds : yield_time;
  }
  std::int64_t patience_when_driving() const {
    const bool rests = !driver_.setup_.cores_suffice && driver_.driven_.rests();
    return rests ? 0 : patience(driver_.driven_.polls());
  }

  // A short wait for something that changes soon: with enough cores spinning, else yielding. After some microseconds of
  // spinning it yields as well: engines' threads take cores too, and the one that is waited for may be on this core.
  template <class Ready>
  bool pause(std::int64_t limit, Ready&& ready) const {
    const bool spins = driver_.setup_.cores_suffice;
    const std::int64_t start = monotonic_now();
    for (std::int64_t waited = 0; waited < limit; waited = monotonic_now() - start) {
      if (ready()) return true;
      if (spins && waited < pure_spin_time)
        for (int turn = 0; turn < 16; ++turn) relax_processor();
      else
        sched_yield();
    }
    return false;
  }

  void note_awaited() {
    if (std::exchange(noted_, true)) return;
    driver_.driven_.about_to_sleep(operation_);
  }

  void poll() {
    if (operation_.done() || monotonic_now() < next_poll_) return;
    next_poll_ = monotonic_now() + look_interval;
    if (!hooks_.poll())
      throw Error(ErrorKind::interrupted,
                  "interrupted by a signal while waiting for '" + operation_.request.name + "', which stays in flight");
  }

  Driver& driver_;
  Operation& operation_;
  WaitHooks& hooks_;
  std::int64_t next_poll_;
  bool noted_ = false;
};

void Driver::wait(Operation& operation, WaitHooks& hooks) {
  struct Inside {
    WaitHooks& hooks;
    explicit Inside(WaitHooks& own) : hooks(own) { hooks.enter(); }
    ~Inside() noexcept(false) { hooks.leave(); }  // see WaitHooks::leave
  } inside(hooks);
  Caller(*this, operation, hooks).run();
}

// (3)
void Driver::hand_over() {
  bell_.state.store(EngineBell::engine_sleeps, std::memory_order_seq_cst);
  if (driven_.advance(true) || driven_.polls() || (driven_.busy() && sleeps_for_ever_.load(std::memory_order_seq_cst)))
    ring(bell_);
}

void Driver::run() {
  std::int64_t last_work = monotonic_now();
  while (!stopping_.load(std::memory_order_seq_cst)) {
    while (callers_.load(std::memory_order_seq_cst) > 0 || requests_.load(std::memory_order_seq_cst) > 0) sched_yield();
    std::int64_t deadline = 0;
    {
      const std::lock_guard role(role_);
      if (stopping_.load(std::memory_order_seq_cst)) return;
      bell_.state.store(EngineBell::awake, std::memory_order_seq_cst);
      if (!drive_until_still(last_work)) continue;
      look(false);
      if (driven_.busy()) last_work = monotonic_now();
      bell_.state.store(EngineBell::engine_sleeps, std::memory_order_seq_cst);  // (1)
      // With something to send it does not, however long that takes: nobody rings for it.
      const bool aged = monotonic_now() - last_work > settling_time, settled = aged && !driven_.polls();
      sleeps_for_ever_.store(settled, std::memory_order_seq_cst);
      if (driven_.advance(false) || (settled && driven_.busy())) {  // (2)
        sleeps_for_ever_.store(false, std::memory_order_seq_cst);
        last_work = monotonic_now();
        continue;
      }
      deadline = settled ? 0 : monotonic_now() + (polls_itself() && !aged ? poll_interval : look_interval);
    }
    if (!stopping_.load(std::memory_order_seq_cst))
      futex_sleep(bell_.state, EngineBell::engine_sleeps, EngineBell::engine_sleeps, deadline);
    sleeps_for_ever_.store(false, std::memory_order_seq_cst);
  }
}

// The engine's thread: takes steps, and while something runs waits a little for the next. Returns false where it has to
// give up the role with steps left to take, or to look around.
bool Driver::drive_until_still(std::int64_t& last_work) {
  for (std::int64_t still = monotonic_now(); !stopping_.load(std::memory_order_seq_cst);) {
    if (callers_.load(std::memory_order_seq_cst) > 0 || requests_.load(std::memory_order_seq_cst) > 0) return false;
    if (driven_.advance(false)) {
      last_work = still = monotonic_now();
      look(false);
    } else if (driven_.moving() && monotonic_now() - still < (polls_itself() ? network_yield_time : yield_time)) {
      sched_yield();
    } else {
      return true;
    }
  }
  return false;
}

bool Driver::polls_itself() const {
  return drivers_.load(std::memory_order_seq_cst) == 0 && driven_.polls();
}

void Driver::look(bool by_caller) {
  const std::int64_t now = monotonic_now();
  if (now < next_look_) return;
  next_look_ = now + look_interval;
  if (driven_.busy()) driven_.look(now, by_caller);
}

}  // namespace ringred
