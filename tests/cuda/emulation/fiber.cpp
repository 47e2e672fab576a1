#include "tests/cuda/emulation/fiber.h"

#include <pthread.h>

#include <cstdint>
#include <cstring>

#include "tests/cuda/emulation/sanitizers.h"

namespace ringred::emulation {
namespace {

// At the far end of a stack: whoever writes over it has used the whole stack.
constexpr std::uint64_t canary = 0x5ca1ab1e0ddba11;

}  // namespace

Fiber::Fiber() : thread_state_(own_thread_state()) {
  pthread_attr_t attributes;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &bytes_);
  pthread_attr_destroy(&attributes);
  bottom_ = bottom;
}

Fiber::Fiber(void (*entry)())
    : stack_(new std::byte[stack_bytes]),
      bottom_(stack_.get()),
      bytes_(stack_bytes),
      thread_state_(new_thread_state()),
      owns_thread_state_(true) {
  std::memcpy(stack_.get(), &canary, sizeof canary);
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = stack_bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

Fiber::~Fiber() {
  if (owns_thread_state_) end_thread_state(thread_state_);
}

void Fiber::switch_to(Fiber& next) {
  leave_stack(&fake_stack_, next.bottom_, next.bytes_, next.thread_state_);
  swapcontext(&context_, &next.context_);
  arrive_on_stack(fake_stack_);
}

void Fiber::arrive() {
  arrive_on_stack(nullptr);
}

bool Fiber::overflowed() const {
  return stack_ && std::memcmp(stack_.get(), &canary, sizeof canary) != 0;
}

}  // namespace ringred::emulation
