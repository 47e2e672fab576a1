// This process's Python stacks as text, taken without the GIL: Python's faulthandler writes them from a signal handler.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <string>

#include "csrc/queue/shared.h"

namespace ringred {

// `signal` is the one that faulthandler is registered for, with a file on `descriptor`. The signal is sent to the
// calling thread, which blocks it otherwise, so no other thread's system call is interrupted and the text is there on
// return.
inline std::string python_stacks(int signal, int descriptor) {
  if (signal <= 0 || ftruncate(descriptor, 0) != 0 || lseek(descriptor, 0, SEEK_SET) != 0) return {};
  sigset_t only, before;
  sigemptyset(&only);
  sigaddset(&only, signal);
  pthread_sigmask(SIG_UNBLOCK, &only, &before);
  pthread_kill(pthread_self(), signal);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  std::string text(RankBlock::stack_bytes, '\0');
  const ssize_t length = pread(descriptor, text.data(), text.size(), 0);
  text.resize(length > 0 ? static_cast<std::size_t>(length) : 0);
  return text;
}

}  // namespace ringred
