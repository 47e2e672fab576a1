// The way into a communicator: one thread at a time may be in a call, and none once it has been closed.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include "csrc/base/error.h"

namespace ringred {

inline constexpr const char* ended_with_shutdown =
    "this communicator ended with shutdown(). Call init(), and bind plans again.";
inline constexpr const char* forked =
    "this process was forked from the one that called init(). Let only the ranks call it; workers of data loaders may "
    "ask for rank() and size().";

class Gate {
 public:
  // A call, while it lives. `name` is a literal.
  class Inside {
   public:
    Inside(Gate& gate, std::string_view name) : gate_(gate) {
      const char* other = nullptr;
      if (!gate.active_.compare_exchange_strong(other, name.data(), std::memory_order_acquire))
        fail_usage("One thread at a time may be in a synchronous call: this one calls " + std::string(name) +
                   " while another is in " + other + ". Use a lock, or call from one thread.");
      const char* const why = gate.closed_.load(std::memory_order_acquire);
      if (why == nullptr) return;
      gate.open_again();
      fail_usage(std::string(name) + " cannot be called here: " + why);
    }
    ~Inside() { gate_.open_again(); }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    Gate& gate_;
  };

  // No call may come any more: why, a literal. Returns whether no thread is in one.
  bool close(const char* why) {
    closed_.store(why, std::memory_order_release);
    return active_.load(std::memory_order_acquire) == nullptr;
  }

  // Also after a fork: the thread that was in a call is not here.
  void open_again() { active_.store(nullptr, std::memory_order_release); }

 private:
  std::atomic<const char*> active_{nullptr};  // the call that a thread is in; taken and cleared by that thread
  std::atomic<const char*> closed_{nullptr};  // null: calls may come
};

}  // namespace ringred
