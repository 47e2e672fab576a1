// libcu++'s atomic_ref and memory orders, on std::atomic_ref. A load lets other threads of the block run now and then,
// as every spinning thread of a device does.
#pragma once

#include <atomic>

#include "tests/cuda/emulation/language.h"

namespace cuda {

enum thread_scope { thread_scope_system, thread_scope_device, thread_scope_block, thread_scope_thread };

template <class T, thread_scope scope = thread_scope_system>
class atomic_ref : public ::std::atomic_ref<T> {
 public:
  explicit atomic_ref(T& value) : ::std::atomic_ref<T>(value) {}

  T load(::std::memory_order order = ::std::memory_order_seq_cst) const {
    ringred::emulation::count_atomic_load();
    return ::std::atomic_ref<T>::load(order);
  }
};

using ::std::memory_order;
using ::std::memory_order_acq_rel;
using ::std::memory_order_acquire;
using ::std::memory_order_relaxed;
using ::std::memory_order_release;
using ::std::memory_order_seq_cst;

namespace std {

using ::std::memory_order;
using ::std::memory_order_acq_rel;
using ::std::memory_order_acquire;
using ::std::memory_order_relaxed;
using ::std::memory_order_release;
using ::std::memory_order_seq_cst;

}  // namespace std
}  // namespace cuda
