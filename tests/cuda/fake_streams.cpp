#include "tests/cuda/fake_streams.h"

#include <chrono>

using ringred::check::FakeProcess;

CUstream_st::CUstream_st(FakeProcess& its_process)
    : process(its_process), random_(its_process.machine.delay_seed++), worker_([this] { run(); }) {}

CUstream_st::~CUstream_st() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  worker_.join();
}

void CUstream_st::push(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  changed_.notify_all();
}

bool CUstream_st::is_idle() {
  const std::lock_guard lock(mutex_);
  return queue_.empty() && !busy_;
}

void CUstream_st::pause() {
  if (!process.machine.slow) return;
  const auto die = random_() % 8;
  if (die == 0) std::this_thread::sleep_for(std::chrono::microseconds(random_() % 200));
  if (die < 3) std::this_thread::yield();
}

void CUstream_st::run() {
  const ringred::check::InProcess inside(process);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || !queue_.empty(); });
    if (queue_.empty() || process.killed) return;
    const auto work = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    pause();
    work();
    lock.lock();
    busy_ = false;
  }
}
