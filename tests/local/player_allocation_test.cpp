// On the way of a message nothing is allocated: from the second call with the same length on, a player allocates
// nothing.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/engine/player.h"
#include "csrc/link/local.h"
#include "tests/check.h"

namespace {

std::atomic<long> allocations{0};

}  // namespace

// Not inlined: the compiler would see malloc on one side only, and warn of a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

using namespace ringred;

namespace {

void add(const void* const* inputs, int, void* const* outputs, int, std::size_t count, std::int64_t) {
  for (std::size_t i = 0; i < count; ++i)
    static_cast<int*>(outputs[0])[i] = static_cast<const int*>(inputs[0])[i] + static_cast<const int*>(inputs[1])[i];
}

// All ranks take turns on one thread.
void play(std::vector<std::unique_ptr<Player<LocalLinks>>>& players) {
  for (bool all = false; !all;) {
    all = true;
    for (auto& player : players) all &= player->advance();
  }
}

}  // namespace

TEST("the counter counts") {
  const long before = allocations;
  auto memory = std::make_unique<std::vector<int>>(100);
  CHECK_EQ(memory->size(), 100U);
  CHECK_EQ(allocations - before, 2);
}

TEST("a repeated call allocates nothing") {
  const int size = 5;
  for (const AlgorithmInfo& row : algorithm_table) {
    LocalNetwork network(size, 4, 2, 64);
    std::vector<LocalLinks> links;
    for (int rank = 0; rank < size; ++rank) links.emplace_back(network, rank);
    std::vector<std::unique_ptr<Player<LocalLinks>>> players;
    for (int rank = 0; rank < size; ++rank)
      players.push_back(std::make_unique<Player<LocalLinks>>(links[static_cast<std::size_t>(rank)], rank,
                                                             chunk_count(row.algorithm, size, 4),
                                                             record_rank(row.algorithm, rank, size, 4)));
    std::vector<std::vector<int>> data(size, std::vector<int>(1000, 1));
    long before = 0;
    for (int call = 0; call < 3; ++call) {
      if (call == 1) before = allocations;
      for (std::size_t rank = 0; rank < players.size(); ++rank)
        players[rank]->start({reinterpret_cast<std::byte*>(data[rank].data()), sizeof(int), 1000, add});
      play(players);
    }
    CHECK_EQ(allocations - before, 0);
    CHECK_EQ(data[3][999], 125);
  }
}
