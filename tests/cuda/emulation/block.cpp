#include "tests/cuda/emulation/block.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string_view>
#include <thread>

#include "tests/cuda/emulation/sanitizers.h"

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim{}, gridDim{};

namespace ringred::cuda {

// The dynamic shared memory of the device, and a line behind it.
alignas(16) thread_local unsigned char dynamic_shared_memory[(227 << 10) + 64];

}  // namespace ringred::cuda

namespace ringred::emulation {
namespace {

thread_local Block* current = nullptr;
thread_local unsigned atomic_loads = 0;

constexpr unsigned char guard = 0xa5;

std::string text_of(Place place) {
  return std::string(place.file_name()) + ":" + std::to_string(place.line());
}

std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

}  // namespace

void Launch::fail(const std::string& text) {
  {
    const std::lock_guard lock(mutex);
    if (failure.empty()) failure = text;
  }
  failed = true;
  release(this);
}

Block::Block(Launch& launch)
    : launch_(launch),
      count_(launch.config.blockDim.x * launch.config.blockDim.y * launch.config.blockDim.z),
      threads_(new Thread[count_]) {}

bool Block::run(uint3 index) {
  current = this;
  index_ = blockIdx = index;
  blockDim = launch_.config.blockDim;
  gridDim = launch_.config.gridDim;
  ended_ = met_ = 0;
  true_conditions_ = 0;
  for (unsigned k = 0; k < count_; ++k) threads_[k].state = State::fresh;
  // The threads of a block see what those of the block before have done: its shared memory is theirs now.
  release(&index_);
  unsigned char* end = cuda::dynamic_shared_memory + launch_.config.dynamicSmemBytes;
  std::fill_n(end, 64, guard);
  while (ended_ < count_ && !launch_.failed) {
    if (!pass()) explain_standstill();
    if (now() > launch_.deadline && !launch_.failed)
      launch_.fail("A kernel must end: after 60 s threads of block " + text_of(index_) + " still run.");
  }
  if (std::any_of(end, end + 64, [](unsigned char byte) { return byte != guard; }))
    launch_.fail("A kernel must stay within its dynamic shared memory: block " + text_of(index_) + " wrote beyond " +
                 std::to_string(launch_.config.dynamicSmemBytes) + " bytes.");
  if (launch_.failed)
    for (unsigned k = 0; k < count_; ++k)
      if (threads_[k].state != State::fresh && threads_[k].state != State::ended) go_on(k);  // to abandon()
  current = nullptr;
  acquire(&ended_);
  release(&launch_);
  return !launch_.failed;
}

// Every thread that can go on does so once; false if there is none.
bool Block::pass() {
  bool any = false;
  paused_only_ = true;
  for (unsigned k = 0; k < count_ && !launch_.failed; ++k)
    if (threads_[k].state == State::fresh || threads_[k].state == State::ready) {
      go_on(k);
      any = true;
    }
  if (any && paused_only_) std::this_thread::yield();
  return any;
}

void Block::go_on(unsigned number) {
  Thread& thread = threads_[number];
  if (thread.state == State::fresh) {
    if (idle_.empty()) idle_.push_back(std::make_unique<Fiber>(&Block::enter));
    thread.fiber = std::move(idle_.back());
    idle_.pop_back();
  }
  thread.state = State::ready;
  running_ = number;
  const dim3 size = launch_.config.blockDim;
  threadIdx = {number % size.x, number / size.x % size.y, number / size.x / size.y};
  scheduler_.switch_to(*thread.fiber);
  if (thread.fiber->overflowed()) launch_.fail("The stack of an emulated thread overflowed: " + name_of(number) + ".");
  if (thread.state == State::ended) idle_.push_back(std::move(thread.fiber));
}

// A fiber runs one thread after another.
void Block::enter() {
  Fiber::arrive();
  Block& block = *current;
  while (true) {
    acquire(&block.index_);
    block.launch_.body.call(block.launch_.body.arguments.get());
    release(&block.ended_);
    ++block.ended_;
    block.paused_only_ = false;
    block.wait(State::ended);
  }
}

void Block::wait(State state) {
  Thread& thread = threads_[running_];
  thread.state = state;
  thread.fiber->switch_to(scheduler_);
  if (launch_.failed) abandon();
}

void Block::pause() {
  wait(State::ready);
}

int Block::meet_block(bool condition, Place place) {
  Thread& mine = threads_[running_];
  mine.function = "__syncthreads";
  mine.place = place;
  mine.mask = 0;
  paused_only_ = false;
  release(this);
  true_conditions_ += condition;
  if (met_ == 0) first_there_ = running_;
  if (!is_same_call(mine, threads_[first_there_])) {
    launch_.fail("Threads of a block must come to the same barrier: " + name_of(running_) + " is at " +
                 waiting_at(mine) + ", and " + name_of(first_there_) + " waits at " +
                 waiting_at(threads_[first_there_]) + ".");
    abandon();
  }
  if (++met_ == count_) {
    result_ = true_conditions_;
    met_ = 0;
    true_conditions_ = 0;
    for (unsigned k = 0; k < count_; ++k) threads_[k].state = State::ready;
  } else {
    wait(State::in_block_meeting);
  }
  acquire(this);
  return result_;
}

Lanes Block::meet_warp(const char* function, unsigned mask, std::uint64_t value, bool orders, Place place) {
  Thread& mine = threads_[running_];
  mine.function = function;
  mine.place = place;
  mine.mask = mask;
  mine.value = value;
  paused_only_ = false;
  const unsigned first = running_ / 32 * 32;
  // Lanes that the block does not have are not waited for: a mask may name all 32.
  const unsigned expected = count_ - first < 32 ? mask & ((1u << (count_ - first)) - 1) : mask;
  if ((mask >> lane() & 1) == 0) {
    launch_.fail("A mask must contain the lane itself: " + name_of(running_) + " is at " + waiting_at(mine) + ".");
    abandon();
  }
  Thread* warp = &threads_[first];
  if (orders) release(warp);
  // A lane that waits elsewhere, or for other lanes, is not there yet.
  bool complete = true;
  for (unsigned k = 0; k < 32; ++k)
    if (expected >> k & 1 && &warp[k] != &mine)
      complete = complete && warp[k].state == State::in_warp_meeting && is_same_call(mine, warp[k]);
  if (complete) {
    for (unsigned k = 0; k < 32; ++k) mine.lanes.value[k] = expected >> k & 1 ? warp[k].value : 0;
    for (unsigned k = 0; k < 32; ++k)
      if (expected >> k & 1 && &warp[k] != &mine) {
        warp[k].lanes = mine.lanes;
        warp[k].state = State::ready;
      }
  } else {
    wait(State::in_warp_meeting);
  }
  if (orders) acquire(warp);
  return mine.lanes;
}

bool Block::is_same_call(const Thread& mine, const Thread& other) {
  return mine.place.line() == other.place.line() && mine.place.column() == other.place.column() &&
         std::string_view(mine.place.file_name()) == other.place.file_name() && mine.mask == other.mask;
}

void Block::explain_standstill() {
  unsigned waiting = 0, other = 0;
  while (waiting < count_ && threads_[waiting].state == State::ended) ++waiting;
  while (other < count_ && threads_[other].state == threads_[waiting].state) ++other;
  std::string text =
      "Every thread of a barrier must reach it: " + name_of(waiting) + " waits at " + waiting_at(threads_[waiting]);
  if (other < count_)
    text += threads_[other].state == State::ended
                ? ", and " + name_of(other) + " has ended"
                : ", and " + name_of(other) + " waits at " + waiting_at(threads_[other]);
  launch_.fail(text + ".");
}

std::string Block::waiting_at(const Thread& thread) const {
  std::string mask;
  if (thread.mask != 0) {
    char digits[16];
    std::snprintf(digits, sizeof digits, "0x%08x", thread.mask);
    mask = std::string(" with mask ") + digits;
  }
  return std::string(thread.function) + mask + ", " + text_of(thread.place);
}

std::string Block::name_of(unsigned thread) const {
  const dim3 size = launch_.config.blockDim;
  return "thread " + text_of(uint3{thread % size.x, thread / size.x % size.y, thread / size.x / size.y}) +
         " of block " + text_of(index_);
}

// Leaves the thread where it is, for good. Objects on its stack are not destroyed: there must be none.
void Block::abandon() {
  Thread& thread = threads_[running_];
  release(&ended_);
  while (true) thread.fiber->switch_to(scheduler_);
}

void Block::trap(Place place) {
  launch_.fail(name_of(running_) + " called __trap, " + text_of(place) + ".");
  abandon();
}

int meet_block(bool condition, Place place) {
  return current->meet_block(condition, place);
}
Lanes meet_warp(const char* function, unsigned mask, std::uint64_t value, bool orders, Place place) {
  return current->meet_warp(function, mask, value, orders, place);
}
unsigned lane() {
  return current->lane();
}
void pause() {
  current->pause();
}
void count_atomic_load() {
  if (current != nullptr && ++atomic_loads % 16 == 0) current->pause();
}
std::int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
void trap(Place place) {
  current->trap(place);
}

}  // namespace ringred::emulation
