// Who drives a rank's engine. Everything but submitting is done by one thread at a time, the one that holds the role:
// the engine's own thread, or a caller in wait(), which would otherwise only sleep until that thread has done the same.
// Driving means to take steps until none can be taken, then to sleep on the rank's bell (shared.h), which peers ring.
//   1. The driver stores into the bell who sleeps (seq_cst): the engine's thread or a caller.
//   2. It tries all steps once more. Only if none can be taken does it sleep. (The ringing side: bell.h.)
//   3. A caller that is done hands over: it stores that the engine's thread sleeps (seq_cst), tries all steps once
//   more,
//      and wakes that thread if there is something to do. If it does not sleep yet it is about to, on the same value.
// What other nodes send rings no bell: while something of that kind is awaited, who drives sleeps for short times only.
// The engine's thread does not while a caller waits, who drives in its place.
// The engine's thread gives up the role while it sleeps, and when a caller wants it; a caller keeps it until it is
// done, or until somebody needs it for something else than driving (Exclusive).
//
// Idle costs nothing: with nothing in flight the thread sleeps without a limit, and who submits wakes it. With
// something in flight it looks at peers' lives and at deadlines every 100 ms.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

#include "csrc/base/wait.h"
#include "csrc/queue/operation.h"
#include "csrc/queue/shared.h"

namespace ringred {

// What is driven. All but about_to_sleep is called with the role.
class Driven {
 public:
  virtual ~Driven() = default;
  // Takes steps that can be taken; whether there was one. `by_caller`: on a thread that is in a call of the user's.
  virtual bool advance(bool by_caller) = 0;
  virtual bool polls() const = 0;   // what comes next may come without a ring: from the network
  virtual bool rests() const = 0;   // what comes next takes long, and rings
  virtual bool busy() const = 0;    // something is in flight: lives and deadlines have to be looked at
  virtual bool moving() const = 0;  // data is on its way: the next step comes soon
  virtual void look(std::int64_t now, bool by_caller) = 0;
  virtual void about_to_sleep(const Operation& operation) = 0;  // a caller, until the operation is over
};

class Driver {
 public:
  struct Setup {
    bool cores_suffice;
    std::int64_t spin_nanoseconds;
  };
  Driver(EngineBell& bell, Driven& driven, Setup setup) : bell_(bell), driven_(driven), setup_(setup) {}

  void start();

  // Ends driving. First, with the role, `last` is done; then the thread is joined. The first call only: returns whether
  // this was it.
  template <class Last>
  bool stop(Last&& last) {
    if (stopping_.exchange(true, std::memory_order_seq_cst)) return false;
    {
      const Exclusive exclusive(*this);
      last();
    }
    join();
    return true;
  }
  bool is_stopping() const { return stopping_.load(std::memory_order_seq_cst); }

  // For a forked child, where the thread does not exist.
  void abandon();

  // Until the operation is done. Throws `interrupted` if the hooks say so.
  void wait(Operation& operation, WaitHooks& hooks);

  // Something was submitted on this rank. The thread has to be woken if it sleeps without a limit, or if `at_once`.
  void notice(bool at_once);

  // The role for something else than driving: who drives gives way, and nobody takes the role before this has had it.
  class Exclusive {
   public:
    explicit Exclusive(Driver& driver);
    ~Exclusive();

   private:
    Driver& driver_;
  };

 private:
  class Caller;

  void run();
  bool drive_until_still(std::int64_t& last_work);
  void look(bool by_caller);
  bool polls_itself() const;
  void hand_over();
  void join();

  EngineBell& bell_;
  Driven& driven_;
  const Setup setup_;
  std::mutex role_;
  std::int64_t next_look_ = 0;    // the driver's
  std::atomic<int> callers_{0};   // that try to take the role from the thread at this moment
  std::atomic<int> drivers_{0};   // callers that drive or are about to: what the network brings they look for
  std::atomic<int> requests_{0};  // for the role from those who do not drive; who drives gives way
  std::atomic<bool> stopping_{false};
  std::atomic<bool> sleeps_for_ever_{false};  // the thread; stored before it looks whether it is idle
  std::thread thread_;
};

}  // namespace ringred
