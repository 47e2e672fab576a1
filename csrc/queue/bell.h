// Waking the thread that drives a peer's engine.
#pragma once

#include "csrc/base/futex.h"
#include "csrc/queue/shared.h"

namespace ringred {

// To be called after each seq_cst store that the owner may wait for. The owner stores that it sleeps (seq_cst), looks
// once more, and only then sleeps; so either it sees the store, or this sees that it sleeps. The value says which of
// the owner's threads is to be woken: it is also the bit on which that thread sleeps.
inline void ring(EngineBell& bell) {
  std::uint32_t sleeper = bell.state.load(std::memory_order_seq_cst);
  if (sleeper == EngineBell::awake) return;
  if (bell.state.compare_exchange_strong(sleeper, EngineBell::awake, std::memory_order_seq_cst))
    futex_wake(bell.state, 1, sleeper);
}

}  // namespace ringred
