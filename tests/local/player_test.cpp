// Every algorithm, played by ranks that are threads, with slots so small that short vectors travel in many pieces.
#include "csrc/engine/player.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/link/local.h"
#include "tests/check.h"

using namespace ringred;

namespace {

using LocalPlayer = Player<LocalLinks>;

constexpr int lanes = 4;  // of a double tree, the most

template <class T>
void add(const void* const* inputs, int, void* const* outputs, int, std::size_t count, std::int64_t) {
  const T* const left = static_cast<const T*>(inputs[0]);
  const T* const right = static_cast<const T*>(inputs[1]);
  T* const result = static_cast<T*>(outputs[0]);
  for (std::size_t i = 0; i < count; ++i) result[i] = left[i] + right[i];
}

template <class T>
Work work_on(std::vector<T>& data) {
  return {reinterpret_cast<std::byte*>(data.data()), sizeof(T), data.size(), add<T>};
}

LocalPlayer make_player(LocalLinks& links, Algorithm algorithm, int rank, int size, int pipeline) {
  return {links, rank, chunk_count(algorithm, size, pipeline), record_rank(algorithm, rank, size, pipeline)};
}

void on_all_ranks(int size, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&body, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        CHECK_EQ(std::string(error.what()), std::string("no exception"));
      }
    });
  for (std::thread& thread : threads) thread.join();
}

// Ranks are now and then late, by up to `longest` microseconds.
void play(LocalPlayer& player, std::minstd_rand& random, unsigned longest) {
  while (!player.advance())
    if (longest > 0 && random() % 16 == 0)
      std::this_thread::sleep_for(std::chrono::microseconds(random() % longest));
    else if (!player.moved())
      std::this_thread::yield();
}

std::set<std::size_t> interesting_counts(int size) {
  const auto ranks = static_cast<std::size_t>(size);
  return {0, 1, 2, 3, 7, 31, 97, 257, 1009, ranks - 1, ranks, ranks + 1};
}

template <class T>
using Values = std::vector<std::vector<T>>;  // by rank

// One network, and on it every count one after the other: what a call leaves behind meets the next.
template <class T>
void play_all_counts(Algorithm algorithm, int size, int pipeline, LocalNetwork& network, unsigned longest,
                     const std::function<T(int, std::size_t)>& input,
                     const std::function<void(const Values<T>&)>& check) {
  std::vector<Values<T>> calls;
  for (std::size_t count : interesting_counts(size)) {
    Values<T>& values = calls.emplace_back(size);
    for (int rank = 0; rank < size; ++rank)
      for (std::size_t i = 0; i < count; ++i) values[static_cast<std::size_t>(rank)].push_back(input(rank, i));
  }
  on_all_ranks(size, [&](int rank) {
    LocalLinks links(network, rank);
    LocalPlayer player = make_player(links, algorithm, rank, size, pipeline);
    std::minstd_rand random(static_cast<unsigned>(rank) + 1);
    for (Values<T>& values : calls) {
      player.start(work_on(values[static_cast<std::size_t>(rank)]));
      play(player, random, longest);
    }
  });
  for (const Values<T>& values : calls) check(values);
}

std::int64_t integer(int rank, std::size_t i) {
  return static_cast<std::int64_t>(i) * 7919 - rank * 1000003 + (std::int64_t{1} << (40 + rank));
}

void check_integer_sums(const Values<std::int64_t>& values) {
  for (std::size_t i = 0; i < values[0].size(); ++i) {
    std::int64_t sum = 0;
    for (std::size_t rank = 0; rank < values.size(); ++rank) sum += integer(static_cast<int>(rank), i);
    for (const std::vector<std::int64_t>& result : values)
      if (result[i] != sum) return CHECK_EQ(result[i], sum);
  }
}

void play_integers(Algorithm algorithm, int pipeline, std::size_t slots, std::size_t slot_bytes, unsigned longest) {
  for (int size = 1; size <= 9; ++size) {
    LocalNetwork network(size, lanes, slots, slot_bytes);
    play_all_counts<std::int64_t>(algorithm, size, pipeline, network, longest, integer, check_integer_sums);
  }
}

// Magnitudes far apart, both zeros, and NaNs that tell their rank.
float real(int rank, std::size_t i) {
  if (i % 31 == 5) return -0.0F;
  if (i % 31 == 9) return std::bit_cast<float>(0x7fc00000U + static_cast<std::uint32_t>(rank) + 1U);
  std::minstd_rand random(static_cast<unsigned>(i) * 64 + static_cast<unsigned>(rank) + 1);
  random.discard(3);
  return std::ldexp(static_cast<float>(random() % 20001) - 10000.0F, static_cast<int>(random() % 40) - 20);
}

void check_same_bits(const Values<float>& values) {
  for (const std::vector<float>& result : values)
    for (std::size_t i = 0; i < result.size(); ++i) {
      const auto bits = std::bit_cast<std::uint32_t>(result[i]);
      if (bits != std::bit_cast<std::uint32_t>(values[0][i]))
        return CHECK_EQ(bits, std::bit_cast<std::uint32_t>(values[0][i]));
      if (i % 31 == 5) CHECK_EQ(bits, 0x80000000U);  // a sum of negative zeros is one
    }
}

}  // namespace

TEST("sums of integers are exact: every algorithm, 1 to 9 ranks, every count, many pieces") {
  for (const AlgorithmInfo& row : algorithm_table) play_integers(row.algorithm, 4, 2, 64, 0);
}

TEST("one slot suffices, and slots that no whole number of elements fills") {
  for (const AlgorithmInfo& row : algorithm_table) play_integers(row.algorithm, 3, 1, 100, 0);
}

TEST("messages that fit into a slot") {
  for (const AlgorithmInfo& row : algorithm_table) play_integers(row.algorithm, 1, 2, 16384, 0);
}

TEST("late ranks change nothing") {
  for (const AlgorithmInfo& row : algorithm_table) play_integers(row.algorithm, 5, 2, 256, 40);
}

TEST("all ranks get the same bits, negative zeros and NaNs too") {
  for (const AlgorithmInfo& row : algorithm_table)
    for (int size = 1; size <= 9; ++size) {
      LocalNetwork network(size, lanes, 2, 64);
      play_all_counts<float>(row.algorithm, size, 4, network, 0, real, check_same_bits);
    }
}

TEST("hierarchical sums") {
  const int size = 6;
  LocalNetwork network(size, lanes, 2, 64);
  Values<std::int64_t> values(size);
  for (int rank = 0; rank < size; ++rank)
    for (std::size_t i = 0; i < 1009; ++i) values[static_cast<std::size_t>(rank)].push_back(integer(rank, i));
  on_all_ranks(size, [&](int rank) {
    LocalLinks links(network, rank);
    LocalPlayer player(links, rank, size, record_hierarchical_rank(rank, size, 3));
    std::minstd_rand random(1);
    player.start(work_on(values[static_cast<std::size_t>(rank)]));
    play(player, random, 0);
  });
  check_integer_sums(values);
}

TEST("different algorithms and lengths may follow each other on the same links") {
  const int size = 5;
  LocalNetwork network(size, lanes, 2, 64);
  for (int round = 0; round < 20; ++round)
    for (const AlgorithmInfo& row : algorithm_table)
      play_all_counts<std::int64_t>(row.algorithm, size, 2, network, 0, integer, check_integer_sums);
}

TEST("a player that cannot go on says what for, and goes on when it can") {
  LocalNetwork network(2, lanes, 1, 64);
  LocalLinks links[2] = {{network, 0}, {network, 1}};
  LocalPlayer first = make_player(links[0], Algorithm::ring, 0, 2, 1);
  LocalPlayer second = make_player(links[1], Algorithm::ring, 1, 2, 1);
  std::vector<std::int64_t> data[2] = {std::vector<std::int64_t>(32, 1), std::vector<std::int64_t>(32, 2)};
  first.start(work_on(data[0]));
  CHECK(!first.advance() && first.moved());
  CHECK(!first.advance() && !first.moved());
  CHECK_EQ(first.waiting_for(),
           std::string("lane 0, step 0 of 2 waits for a free slot to send chunk 0 to rank 1 and for "
                       "chunk 1 from rank 1"));
  CHECK_EQ(first.waiting_peer(), 1);
  second.start(work_on(data[1]));
  for (int turn = 0; turn < 100 && !(first.advance() & second.advance()); ++turn) continue;
  CHECK(first.finished() && second.finished());
  CHECK_EQ(first.waiting_for(), std::string());
  CHECK_EQ(first.waiting_peer(), -1);
  CHECK(data[0] == std::vector<std::int64_t>(32, 3) && data[1] == data[0]);
}

TEST("lanes that wait for different peers name none") {
  LocalNetwork network(4, lanes, 1, 64);
  LocalLinks links(network, 2);
  LocalPlayer player = make_player(links, Algorithm::double_tree, 2, 4, 2);
  std::vector<std::int64_t> data(8, 1);
  player.start(work_on(data));
  CHECK(!player.advance());
  CHECK_EQ(player.waiting_for(),
           std::string("lane 0, step 0 of 3 waits for chunk 0 from rank 1; lane 1, step 0 of 3 waits "
                       "for step 2 of lane 0; lane 3, step 0 of 1 waits for chunk 1 from rank 1"));
  CHECK_EQ(player.waiting_peer(), 1);
  LocalLinks root_links(network, 0);
  LocalPlayer root = make_player(root_links, Algorithm::double_tree, 0, 4, 2);
  root.start(work_on(data));
  CHECK(!root.advance());
  CHECK_EQ(root.waiting_peer(), -1);
}

TEST("buffers of different lengths are an error with both lengths") {
  LocalNetwork network(2, lanes, 2, 64);
  LocalLinks links[2] = {{network, 0}, {network, 1}};
  LocalPlayer first = make_player(links[0], Algorithm::recursive_doubling, 0, 2, 1);
  LocalPlayer second = make_player(links[1], Algorithm::recursive_doubling, 1, 2, 1);
  std::vector<std::int64_t> shorter(3), longer(4);
  first.start(work_on(shorter));
  second.start(work_on(longer));
  CHECK(!first.advance());
  CHECK_THROWS(second.advance(), "rank 1, lane 0, step 0 expects 32 bytes from rank 0 and gets 24");
}

TEST("an element must fit into a slot") {
  LocalNetwork network(2, lanes, 2, 4);
  LocalLinks links(network, 0);
  LocalPlayer player = make_player(links, Algorithm::ring, 0, 2, 1);
  std::vector<std::int64_t> data(3);
  CHECK_THROWS(player.start(work_on(data)), "elements have 8 bytes, slots 4");
}
