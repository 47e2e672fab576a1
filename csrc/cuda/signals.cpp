#include "csrc/cuda/signals.h"

namespace ringred::cuda {
namespace {

bool writes_values(const Gpu& gpu, Stream stream, HostWord trial) {
  const CurrentContext current(gpu);
  const Driver& driver = *gpu.driver;
  const Result result = driver->stream_write_value(stream, trial.device, 0, write_value_default);
  if (result != Result::not_supported) driver.check(result, "write a value on a stream");
  return result == Result::success;
}

}  // namespace

Signals::Signals(const Gpu& gpu, Stream stream, HostWord trial)
    : driver_(*gpu.driver), on_device_(writes_values(gpu, stream, trial)) {}

void Signals::run(void* store) {
  Store& mine = *static_cast<Store*>(store);
  std::atomic<std::uint32_t>& word = *mine.word;
  const std::uint32_t count = mine.count;
  mine.pending.store(false, std::memory_order_release);
  word.store(count, std::memory_order_seq_cst);
}

void Signals::post(Stream stream, HostWord word, std::uint32_t count, HostWaiting wait_on_host) {
  if (on_device_) {
    driver_.check(driver_->stream_write_value(stream, word.device, count, write_value_default),
                  "write a value on a stream");
    return;
  }
  Store& store = stores_[next_store_++ % stores_.size()];
  wait_on_host([&] { return !store.pending.load(std::memory_order_acquire); });
  store.word = word.host;
  store.count = count;
  store.pending.store(true, std::memory_order_relaxed);
  const Result result = driver_->launch_host_function(stream, &run, &store);
  if (result == Result::success) return;
  store.pending.store(false, std::memory_order_relaxed);
  driver_.fail(result, "enqueue a host function");
}

void Signals::await(Stream stream, HostWord word, std::uint32_t count, HostWaiting wait_on_host) {
  if (on_device_)
    driver_.check(driver_->stream_wait_value(stream, word.device, count, wait_value_geq),
                  "make a stream wait for a value");
  else
    wait_on_host([&] { return has_come(word.host->load(std::memory_order_seq_cst), count); });
}

}  // namespace ringred::cuda
