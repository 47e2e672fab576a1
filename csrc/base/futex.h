// The futex system call: sleep while a word has a value, and wake who sleeps on it.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

namespace ringred {

inline long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value, const timespec* timeout,
                  std::uint32_t bits) {
  return ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, timeout, nullptr, bits);
}

enum class Slept { woken, timed_out, signalled };

// Sleeps while `word` is `value`, until woken with one of `bits`, at most until `deadline` (nanoseconds of
// CLOCK_MONOTONIC; 0: for ever). The word may be shared with other processes.
inline Slept futex_sleep(std::atomic<std::uint32_t>& word, std::uint32_t value, std::uint32_t bits,
                         std::int64_t deadline) {
  const timespec until{static_cast<time_t>(deadline / 1'000'000'000), static_cast<long>(deadline % 1'000'000'000)};
  if (futex(word, FUTEX_WAIT_BITSET, value, deadline == 0 ? nullptr : &until, bits) == 0) return Slept::woken;
  return errno == EINTR ? Slept::signalled : errno == ETIMEDOUT ? Slept::timed_out : Slept::woken;
}

inline void futex_wake(std::atomic<std::uint32_t>& word, int sleepers, std::uint32_t bits) {
  futex(word, FUTEX_WAKE_BITSET, static_cast<std::uint32_t>(sleepers), nullptr, bits);
}

// Nanoseconds of CLOCK_MONOTONIC: the same clock for all processes of a machine.
inline std::int64_t monotonic_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace ringred
