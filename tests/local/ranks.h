// Ranks as threads of one process: each has a communicator of its own over segments that all see at the same addresses,
// so that ThreadSanitizer sees every access.
#pragma once

#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "csrc/engine/communicator.h"
#include "tests/check.h"

namespace ringred::check {

// Small slots, so that small arrays take the paths of large ones; waits that end within the test's limit.
inline Settings small_settings() {
  Settings settings = read_settings([](std::string_view) { return std::nullopt; });
  settings.timeout_seconds = 60;
  settings.stall_seconds = 0;
  settings.one_shot_bytes = 128;
  settings.one_shot_given = true;
  settings.slot_bytes = 1024;
  settings.chunk_bytes = 256;
  settings.arena_bytes = std::size_t{64} << 20;
  settings.wait = "yield";
  // How batches go across nodes, see RINGRED_TEST_NODES.
  if (const char* algorithm = std::getenv("RINGRED_TEST_ALGORITHM")) settings.algorithm = algorithm;
  return settings;
}

inline std::vector<std::unique_ptr<Communicator>> make_ranks(int size, const Settings& settings) {
  std::vector<std::shared_ptr<Arena>> arenas;
  std::vector<std::byte*> bases;
  for (int rank = 0; rank < size; ++rank) {
    arenas.push_back(Communicator::make_arena(size, settings));
    bases.push_back(arenas.back()->segment().base());
  }
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; ++rank) {
    Communicator::Setup setup;
    setup.rank = rank;
    setup.size = size;
    setup.arena = arenas[static_cast<std::size_t>(rank)];
    setup.bases = bases;
    setup.lifelines.assign(static_cast<std::size_t>(size), -1);
    setup.settings = settings;
    ranks.push_back(std::make_unique<Communicator>(std::move(setup)));
  }
  return ranks;
}

// Runs body(communicator) on a thread for each rank. An uncaught error ends that rank's part, as the end of a process
// does, and fails the test.
template <class Body>
void run_ranks(int size, const Settings& settings, Body body) {
  auto ranks = make_ranks(size, settings);
  std::vector<std::thread> threads;
  for (auto& communicator : ranks)
    threads.emplace_back([&body, &communicator] {
      try {
        body(*communicator);
      } catch (const std::exception& error) {
        report("rank", communicator->rank(), std::string("uncaught: ") + error.what());
        communicator->leave("its test failed");
      }
    });
  for (std::thread& thread : threads) thread.join();
}

// Now and then a pause of a random length, so that ranks meet in every order.
class RandomDelay {
 public:
  explicit RandomDelay(int seed) : random_(static_cast<unsigned>(seed)) {}
  void operator()() {
    const unsigned die = random_() % 16;
    if (die == 0) std::this_thread::sleep_for(std::chrono::microseconds(random_() % 300));
    if (die < 4) std::this_thread::yield();
  }

 private:
  std::mt19937 random_;
};

}  // namespace ringred::check
