// The wait loop of the device. Every kernel that waits for another block waits here.
//
// Invariant: a wait ends: with what was awaited, or after `patience` ticks of clock64 with a report, or soon after
// another thread of the rank has reported or the host has raised the report.
#pragma once

#include "csrc/cuda/report.h"
#include "csrc/cuda/words.cuh"

namespace ringred::cuda {

struct Waiting {
  Report* report;
  long long patience;
  int rank, lane, stripe, move;

  // load() gives the number that stands there now; true once it is `expected` or more.
  template <class Load>
  __device__ __forceinline__ bool number(Awaited awaited, int peer, Word expected, const Load& load) const {
    Word seen = load();
    if (seen >= expected) return true;
    const long long deadline = clock64() + patience;
    do {
#pragma unroll 1
      for (int turn = 0; turn < turns_between_looks; ++turn) {
        seen = load();
        if (seen >= expected) return true;
      }
      if (given_up()) return false;
    } while (clock64() < deadline);
    // Its last look, in case the device stood still for longer than the patience.
    seen = load();
    if (seen >= expected) return true;
    give_up(awaited, peer, expected, seen);
    return false;
  }

 private:
  // The report may lie in the host's memory, far away.
  static constexpr int turns_between_looks = 256;

  __device__ bool given_up() const { return load_relaxed(&report->taken) != 0; }

  __device__ __forceinline__ void give_up(Awaited awaited, int peer, Word expected, Word seen) const {
    Word free = 0;
    if (!SharedWord<Word>(report->taken)
             .compare_exchange_strong(free, Report::being_written, ::cuda::memory_order_relaxed))
      return;
    report->awaited = awaited;
    report->rank = rank;
    report->peer = peer;
    report->lane = lane;
    report->stripe = stripe;
    report->move = move;
    report->expected = expected;
    report->seen = seen;
    store_release(&report->taken, Report::there);
  }
};

}  // namespace ringred::cuda
