// What AddressSanitizer and ThreadSanitizer have to be told about fibers; nothing in other builds. CMake says which one
// there is: the emulation itself is not instrumented by ThreadSanitizer, so that only kernels are.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(RINGRED_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

namespace ringred::emulation {

#if defined(RINGRED_THREAD_SANITIZER)
inline void* own_thread_state() {
  return __tsan_get_current_fiber();
}
inline void* new_thread_state() {
  return __tsan_create_fiber(0);
}
inline void end_thread_state(void* state) {
  __tsan_destroy_fiber(state);
}
inline void leave_stack(void**, const void*, std::size_t, void* next_thread_state) {
  __tsan_switch_to_fiber(next_thread_state, __tsan_switch_to_fiber_no_sync);
}
inline void arrive_on_stack(void*) {}
// Everything before release(place) is seen after acquire(place).
inline void release(void* place) {
  __tsan_release(place);
}
inline void acquire(void* place) {
  __tsan_acquire(place);
}
#else
inline void* own_thread_state() {
  return nullptr;
}
inline void* new_thread_state() {
  return nullptr;
}
inline void end_thread_state(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
#if defined(__SANITIZE_ADDRESS__)
inline void leave_stack(void** fake_stack, const void* bottom, std::size_t bytes, void*) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
}
inline void arrive_on_stack(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#else
inline void leave_stack(void**, const void*, std::size_t, void*) {}
inline void arrive_on_stack(void*) {}
#endif
#endif

}  // namespace ringred::emulation
