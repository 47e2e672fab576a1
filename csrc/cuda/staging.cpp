#include "csrc/cuda/staging.h"

#include <algorithm>

#include "csrc/base/error.h"
#include "csrc/base/round.h"
#include "csrc/base/text.h"
#include "csrc/cuda/capture.h"

namespace ringred::cuda {
namespace {

using Clock = std::chrono::steady_clock;

// Ahead of every chunk that a stream may wait for, and not so far that it would count as behind.
constexpr std::uint32_t far_ahead = std::uint32_t{1} << 30;

// How long streams may take to run out after all that they wait for has come: copies of a few slices.
constexpr auto run_out_time = std::chrono::seconds(5);

constexpr const char* names[StagingBlock::steps] = {"copied to host memory", "read", "published", "taken"};

}  // namespace

struct Staging::Call {
  DevicePointer input, output;
  std::size_t count, element_size;
  StagedReduction reduce;
  std::uint32_t first, chunks;  // numbered from first
};

// Of a chunk: where it lies in the array, in bytes.
struct Staging::Slice {
  std::size_t offset, bytes;
};

// Whoever stops in the middle of a call tells its peers, who would wait for it.
template <class Work>
void Staging::or_break_off(Work&& work) {
  try {
    work();
  } catch (const std::exception& error) {
    break_off(std::string("broke off: ") + error.what());
    throw;
  }
}

Staging::Staging(Setup setup) : setup_(std::move(setup)), events_(setup_.gpu, 6), chunk_(setup_.chunks_before) {
  const auto& [slice_bytes, size] = setup_.layout;
  if (slice_bytes == 0 || slice_bytes % 64 != 0 || size != static_cast<int>(setup_.blocks.size()))
    fail_usage("Staging needs a block for each rank, and slices of a multiple of 64 bytes: here are " +
               std::to_string(setup_.blocks.size()) + " blocks for " + std::to_string(size) + " ranks, and slices of " +
               std::to_string(slice_bytes) + " bytes.");
  for (std::byte* start : setup_.blocks) registered_.emplace_back(setup_.gpu, start, setup_.layout.bytes());
  scratch_ = std::make_unique<DeviceMemory>(setup_.gpu, slice_bytes * index(std::max(size - 1, 1)));
  out_.emplace(setup_.gpu);
  in_.emplace(setup_.gpu);
  std::atomic<std::uint32_t>& trial = block(setup_.rank).trial.chunk;
  signals_.emplace(setup_.gpu, out_->get(), HostWord{&trial, registered_[index(setup_.rank)].seen_by_device(&trial)});
  inputs_.resize(index(size));
}

// What streams still use must not go. If they do not end, it goes with the process.
Staging::~Staging() {
  const auto deadline = Clock::now() + run_out_time;
  while (!is_idle() && Clock::now() < deadline && block(setup_.rank).broken == 0)
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  if (is_idle()) return;
  break_off("has left while work on its device was under way");
  if (is_idle()) return;
  for (RegisteredMemory& memory : registered_) memory.abandon();
  scratch_->abandon();
}

void Staging::allreduce(const CallerStream& caller, DevicePointer input, DevicePointer output, std::size_t count,
                        std::size_t element_size, StagedReduction reduce) {
  throw_if_broken();
  const Driver& driver = *setup_.gpu.driver;
  const Stream theirs = caller.get();
  require_no_capture(driver, theirs, "An allreduce through host memory", "each replay would need numbers of its own");
  const std::size_t of_slice = setup_.layout.slice_bytes / element_size;
  const std::size_t chunks = divide_up(count, of_slice * index(setup_.layout.size));
  Call call{input, output, count, element_size, reduce, chunk_ + 1, static_cast<std::uint32_t>(chunks)};
  const CurrentContext current(setup_.gpu);
  or_break_off([&] {
    {
      const EventPool::Lease ready = events_.record(theirs);
      follow(driver, out_->get(), ready);
      follow(driver, in_->get(), ready);
    }
    began_ = Clock::now();
    ++calls_;
    chunk_ += call.chunks;
    enqueue(call);
    out_done_.reset();
    in_done_.reset();
    out_done_.emplace(events_.record(out_->get()));
    in_done_.emplace(events_.record(in_->get()));
    follow(driver, theirs, *out_done_);
    follow(driver, theirs, *in_done_);
  });
}

// The order that staging.h draws.
void Staging::enqueue(Call& call) {
  if (setup_.layout.size == 1) {
    inputs_[0] = call.input;
    if (call.count > 0) call.reduce(in_->get(), inputs_.data(), call.output, call.count);
    return;
  }
  for (std::uint32_t i = 0; i < std::min(call.chunks, 2u); ++i) send(call, call.first + i);
  for (std::uint32_t i = 0; i < call.chunks; ++i) {
    read(call, call.first + i);
    publish(call, call.first + i);
    if (i + 2 < call.chunks) send(call, call.first + i + 2);
    if (i > 0) take(call, call.first + i - 1);
  }
  if (call.chunks > 0) take(call, call.first + call.chunks - 1);
}

void Staging::send(const Call& call, std::uint32_t chunk) {
  await_all(out_->get(), StagingBlock::read, chunk - 2);
  for (int owner = 0; owner < setup_.layout.size; ++owner) {
    const Slice slice = slice_of_rank(call, chunk, owner);
    if (owner != setup_.rank) to_host(place(chunk, setup_.rank, owner), call.input + slice.offset, slice.bytes);
  }
  post(out_->get(), StagingBlock::send, chunk);
  // CUDA sees nothing of the counters: what they order within one rank is said by events, too.
  sent_[chunk % 2].reset();
  sent_[chunk % 2].emplace(events_.record(out_->get()));
}

void Staging::read(const Call& call, std::uint32_t chunk) {
  follow(*setup_.gpu.driver, in_->get(), *sent_[chunk % 2]);
  await_all(in_->get(), StagingBlock::send, chunk);
  const Slice slice = slice_of_rank(call, chunk, setup_.rank);
  DevicePointer room = scratch_->address();
  for (int peer = 0; peer < setup_.layout.size; ++peer) {
    inputs_[index(peer)] = peer == setup_.rank ? call.input + slice.offset : room;
    if (peer == setup_.rank) continue;
    to_device(room, place(chunk, peer, setup_.rank), slice.bytes);
    room += setup_.layout.slice_bytes;
  }
  post(in_->get(), StagingBlock::read, chunk);
  if (slice.bytes > 0)
    call.reduce(in_->get(), inputs_.data(), call.output + slice.offset, slice.bytes / call.element_size);
}

void Staging::publish(const Call& call, std::uint32_t chunk) {
  follow(*setup_.gpu.driver, out_->get(), events_.record(in_->get()));
  await_all(out_->get(), StagingBlock::take, chunk - 2);
  const Slice slice = slice_of_rank(call, chunk, setup_.rank);
  to_host(place(chunk, setup_.rank, setup_.rank), call.output + slice.offset, slice.bytes);
  post(out_->get(), StagingBlock::publish, chunk);
}

void Staging::take(const Call& call, std::uint32_t chunk) {
  await_all(in_->get(), StagingBlock::publish, chunk);
  for (int owner = 0; owner < setup_.layout.size; ++owner) {
    const Slice slice = slice_of_rank(call, chunk, owner);
    if (owner != setup_.rank) to_device(call.output + slice.offset, place(chunk, owner, owner), slice.bytes);
  }
  post(in_->get(), StagingBlock::take, chunk);
}

// Slices of a chunk are alike, in whole cache lines, but for the last ones.
Staging::Slice Staging::slice_of_rank(const Call& call, std::uint32_t chunk, int owner) const {
  const std::size_t ranks = index(setup_.layout.size);
  const std::size_t of_chunk = setup_.layout.slice_bytes / call.element_size * ranks * call.element_size;
  const std::size_t begin = of_chunk * (chunk - call.first);
  const std::size_t bytes = std::min(of_chunk, call.count * call.element_size - begin);
  const std::size_t each = round_up(divide_up(bytes, ranks), 64);
  const std::size_t from = std::min(bytes, each * index(owner));
  return {begin + from, std::min(bytes - from, each)};
}

HostWord Staging::word(int rank, StagingBlock::Step step) const {
  std::atomic<std::uint32_t>& counter = block(rank).done[step].chunk;
  return {&counter, registered_[index(rank)].seen_by_device(&counter)};
}

void Staging::await_all(Stream stream, StagingBlock::Step step, std::uint32_t chunk) {
  const auto on_host = [this](FunctionRef<bool()> ready) { wait_on_host(ready); };
  for (int peer = 0; peer < setup_.layout.size; ++peer)
    if (peer != setup_.rank) signals_->await(stream, word(peer, step), chunk, on_host);
}

void Staging::post(Stream stream, StagingBlock::Step step, std::uint32_t chunk) {
  const auto on_host = [this](FunctionRef<bool()> ready) { wait_on_host(ready); };
  signals_->post(stream, word(setup_.rank, step), chunk, on_host);
}

void Staging::to_host(std::byte* to, DevicePointer from, std::size_t bytes) {
  const Driver& driver = *setup_.gpu.driver;
  if (bytes > 0) driver.check(driver->copy_to_host(to, from, bytes, out_->get()), "copy to host memory");
}

void Staging::to_device(DevicePointer to, const std::byte* from, std::size_t bytes) {
  const Driver& driver = *setup_.gpu.driver;
  if (bytes > 0) driver.check(driver->copy_to_device(to, from, bytes, in_->get()), "copy from host memory");
}

bool Staging::is_idle() const {
  return has_ended(*setup_.gpu.driver, out_->get()) && has_ended(*setup_.gpu.driver, in_->get());
}

bool Staging::is_done() const {
  const Driver& driver = *setup_.gpu.driver;
  return is_over(driver, out_done_->get()) && is_over(driver, in_done_->get());
}

void Staging::await() {
  if (out_done_) or_break_off([&] { wait_on_host([&] { return is_done(); }); });
  throw_if_broken();
}

void Staging::check() {
  throw_if_broken();
  const double limit = setup_.wait.settings.timeout_seconds;
  if (!out_done_ || limit <= 0 || Clock::now() - began_ < std::chrono::duration<double>(limit)) return;
  or_break_off([&] {
    if (!is_done()) throw overdue(lacking(), limit);
  });
}

void Staging::wait_on_host(FunctionRef<bool()> ready) {
  const auto look_around = [this] {
    throw_if_broken();
    if (setup_.look_around) setup_.look_around();
  };
  setup_.wait.until(ready, look_around, [this] { return lacking(); });
}

std::string Staging::lacking() const {
  const std::string me = "rank " + std::to_string(setup_.rank) + " waits for ";
  const std::string call = " in allreduce " + std::to_string(calls_) + " through host memory";
  for (int step = 0; step < StagingBlock::steps; ++step)
    for (int peer = 0; peer < setup_.layout.size; ++peer) {
      const std::uint32_t seen = block(peer).done[step].chunk.load();
      if (peer != setup_.rank && !has_come(seen, chunk_))
        return me + "rank " + std::to_string(peer) + call + ": it has " + names[step] + " chunk " +
               std::to_string(seen) + " of " + std::to_string(chunk_);
    }
  return me + "its device" + call;
}

void Staging::throw_if_broken() const {
  for (int rank = 0; rank < setup_.layout.size; ++rank)
    if (block(rank).broken.load() != 0)
      throw Error(ErrorKind::peer_lost,
                  "rank " + std::to_string(rank) + " " + block(rank).reason + "." + restart_remedy);
}

// Only a broken rank writes others' counters, and only after it has said so.
void Staging::break_off(const std::string& reason) {
  StagingBlock& mine = block(setup_.rank);
  if (mine.broken.load() == 0) {
    store_text(mine.reason, std::string_view(reason).substr(0, reason.find_last_not_of('.') + 1));
    mine.broken.store(1);
  }
  run_out();
}

// Streams may store their own, lower numbers in between, so this goes on until they have come to their end.
bool Staging::run_out() {
  const auto deadline = Clock::now() + run_out_time;
  while (!is_idle()) {
    if (Clock::now() > deadline) return false;
    for (int rank = 0; rank < setup_.layout.size; ++rank)
      for (StagingBlock::Counter& counter : block(rank).done) counter.chunk.store(chunk_ + far_ahead);
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

}  // namespace ringred::cuda
