// A fiber: a stack and a place in a program that its OS thread goes on from later. Sanitizers are told of every switch.
//
// Invariant: a fiber runs on the OS thread that made it. To ThreadSanitizer every fiber is a thread of its own, and a
// switch orders nothing: what one fiber writes and another reads needs a barrier or an atomic, as on the device.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <memory>

namespace ringred::emulation {

class Fiber {
 public:
  Fiber();  // the calling OS thread itself
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves this fiber, which runs, for `next`; returns when another one comes back to this.
  void switch_to(Fiber& next);
  // The first thing that the entry of a fiber calls.
  static void arrive();
  bool overflowed() const;

 private:
  static constexpr std::size_t stack_bytes = 128 << 10;

  ucontext_t context_;
  std::unique_ptr<std::byte[]> stack_;
  const void* bottom_ = nullptr;  // of the stack
  std::size_t bytes_ = 0;
  void* fake_stack_ = nullptr;  // sanitizers.h
  void* thread_state_;
  bool owns_thread_state_ = false;
};

}  // namespace ringred::emulation
