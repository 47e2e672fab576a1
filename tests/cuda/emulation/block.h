// One block of a launch: its threads as fibers, who waits where, and what goes wrong.
//
// Invariant: one fiber of a block runs at a time, and only meet_block, meet_warp, pause and the end of the kernel let
// another one run. A barrier that cannot complete ends the launch with a sentence that names both sides.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/cuda/emulation/cuda_runtime.h"
#include "tests/cuda/emulation/fiber.h"

namespace ringred::emulation {

// What the blocks of a launch share. A failure in one ends all of them.
struct Launch {
  cudaLaunchConfig_t config;
  Body body;
  std::int64_t deadline;  // by now()
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::string failure;  // the first one

  void fail(const std::string& text);
};

class Block {
 public:
  explicit Block(Launch& launch);
  // Runs one block to its end; false if the launch has failed.
  bool run(uint3 index);

  int meet_block(bool condition, Place place);
  Lanes meet_warp(const char* function, unsigned mask, std::uint64_t value, bool orders, Place place);
  void pause();
  [[noreturn]] void trap(Place place);
  unsigned lane() const { return running_ % 32; }
  std::string name_of(unsigned thread) const;

 private:
  enum class State : std::uint8_t { fresh, ready, in_block_meeting, in_warp_meeting, ended };
  struct Thread {
    State state = State::fresh;
    bool orders = false;
    unsigned mask = 0;
    std::uint64_t value = 0;
    const char* function = nullptr;
    Place place;
    std::unique_ptr<Fiber> fiber;
    Lanes lanes;
  };

  static void enter();
  void go_on(unsigned thread);
  bool pass();
  void wait(State state);
  static bool is_same_call(const Thread& mine, const Thread& other);
  [[noreturn]] void abandon();
  void explain_standstill();
  std::string waiting_at(const Thread& thread) const;

  Launch& launch_;
  Fiber scheduler_;
  unsigned count_;
  std::unique_ptr<Thread[]> threads_;
  std::vector<std::unique_ptr<Fiber>> idle_;  // fibers whose threads have ended, for the next ones
  uint3 index_{};
  unsigned running_ = 0, ended_ = 0;
  unsigned met_ = 0, first_there_ = 0;  // at the barrier of the block
  int true_conditions_ = 0, result_ = 0;
  bool paused_only_ = true;  // in this pass every thread that ran has paused
};

}  // namespace ringred::emulation
