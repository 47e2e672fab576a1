// Every algorithm, for every number of ranks up to 64, is right in every channel model.
#include "csrc/algorithms/algorithms.h"

#include <string>

#include "csrc/schedule/verify.h"
#include "tests/check.h"

using namespace ringred;

namespace {

// Small sizes, where the special cases are, are played in more than one order.
void check_in_all_channels(const Schedule& schedule) {
  const std::uint32_t seeds = schedule.size <= 17 ? 2 : 1;
  for (const Channel& channel : channels)
    for (std::uint32_t seed = 0; seed < seeds; ++seed)
      CHECK_EQ(find_flaw(schedule, channel, seed).value_or("right"), std::string("right"));
}

void check_all_sizes(Algorithm algorithm, int pipeline_chunks) {
  for (int size = 1; size <= 64; ++size) check_in_all_channels(record(algorithm, size, pipeline_chunks));
}

}  // namespace

TEST("ring is right on 1 to 64 ranks") {
  check_all_sizes(Algorithm::ring, 1);
}

TEST("double_tree is right on 1 to 64 ranks") {
  for (int chunks : {1, 2, 7, 16}) check_all_sizes(Algorithm::double_tree, chunks);
}

TEST("halving_doubling is right on 1 to 64 ranks") {
  check_all_sizes(Algorithm::halving_doubling, 1);
}

TEST("recursive_doubling is right on 1 to 64 ranks") {
  check_all_sizes(Algorithm::recursive_doubling, 1);
}

TEST("circulant is right on 1 to 64 ranks") {
  check_all_sizes(Algorithm::circulant, 1);
}

TEST("hierarchical is right for every number of ranks per node") {
  for (int size = 1; size <= 64; ++size)
    for (int local = 1; local <= size; ++local)
      if (size % local == 0) check_in_all_channels(record_hierarchical(size, local));
}

TEST("two levels are right for every number of ranks per node and every algorithm across") {
  for (int size = 1; size <= 24; ++size)
    for (int local = 1; local <= size; ++local)
      for (const AlgorithmInfo& row : algorithm_table)
        if (size % local == 0) check_in_all_channels(record_two_level(size, local, row.algorithm, 3));
}

TEST("thousands of ranks' worth of algorithm: 1000 and 1024") {
  for (int size : {1000, 1024})
    for (Algorithm algorithm : {Algorithm::recursive_doubling, Algorithm::double_tree})
      CHECK_EQ(find_flaw(record(algorithm, size, 2), channels[0], 0).value_or("right"), std::string("right"));
}

TEST("one rank alone sends nothing") {
  for (const AlgorithmInfo& row : algorithm_table)
    for (const Lane& lane : record_rank(row.algorithm, 0, 1, 4)) CHECK(lane.empty());
}

TEST("a rank's own recording is its part of everybody's") {
  for (const AlgorithmInfo& row : algorithm_table) {
    const Schedule schedule = record(row.algorithm, 13, 4);
    for (int rank = 0; rank < 13; ++rank) {
      const std::vector<Lane> lanes = record_rank(row.algorithm, rank, 13, 4);
      const std::vector<Lane>& same = schedule.ranks[static_cast<std::size_t>(rank)];
      CHECK_EQ(lanes.size(), same.size());
      for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
        CHECK_EQ(lanes[lane].size(), same[lane].size());
        for (std::size_t step = 0; step < lanes[lane].size(); ++step) {
          CHECK(lanes[lane][step].out == same[lane][step].out && lanes[lane][step].in == same[lane][step].in);
          CHECK(lanes[lane][step].after == same[lane][step].after);
        }
      }
    }
  }
}

TEST("algorithms are found by name") {
  for (const AlgorithmInfo& row : algorithm_table) CHECK(algorithm_named(row.name) == row.algorithm);
  CHECK(!algorithm_named("rings"));
  for (std::size_t row = 0; row < algorithm_table.size(); ++row)
    CHECK_EQ(static_cast<std::size_t>(algorithm_table[row].algorithm), row);
}

TEST("wrong sizes are refused with a reason") {
  CHECK_THROWS(record(Algorithm::ring, 0, 1), "1 or more ranks");
  CHECK_THROWS(record_rank(Algorithm::ring, 4, 4, 1), "rank 4 of 4");
  CHECK_THROWS(record(Algorithm::double_tree, 4, 0), "1 or more chunks: got 0");
  CHECK_THROWS(record_hierarchical(6, 4), "6 ranks, 4 on a node");
  CHECK_THROWS(record_two_level(6, 4, Algorithm::ring, 1), "6 ranks, 4 on a node");
}
