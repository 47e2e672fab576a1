// Streams and events of the fake driver: a stream is a queue that a thread of its own works off, with random pauses, so
// that whatever is not ordered happens in any order (and ThreadSanitizer sees it).
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "tests/cuda/fake_machine.h"

struct CUctx_st {
  ringred::check::FakeProcess* process;
  int ordinal;
};

struct CUstream_st {
  explicit CUstream_st(ringred::check::FakeProcess& process);
  ~CUstream_st();

  void push(std::function<void()> work);
  bool is_idle();

  ringred::check::FakeProcess& process;
  std::shared_ptr<ringred::check::Capture> capture;
  std::set<std::size_t> seen;  // nodes of the capture that come before whatever follows

 private:
  void run();
  void pause();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool busy_ = false, ending_ = false;
  std::minstd_rand random_;
  std::thread worker_;
};

struct CUevent_st {
  std::shared_ptr<std::atomic<bool>> done;  // of what was recorded last
  std::shared_ptr<ringred::check::Capture> capture;
  std::set<std::size_t> seen;
};
