// Every algorithm, proved right symbolically up to 1,024 ranks: too long for every run, so `make nightly` runs it.
//
// A test has the 120 seconds of the harness, all take 5 minutes. On one core of 2026, time and memory: the ring on
// 1,024 ranks 5 to 8 seconds and 440 MB for each channel, most of it the 2 million steps; circulant 2 to 7 and 190 MB;
// halving_doubling 2 to 3 and 190 MB; double_tree and recursive_doubling below 0.1. Two levels with 8 ranks on a node
// take 4 to 8 seconds, but a lane for every rank of a node makes many lanes that wait: with 128 on a node it would be
// 400 seconds, so nodes have at most 16 here (and up to 24 in algorithms_test).
#include <string>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/schedule/verify.h"
#include "tests/check.h"

using namespace ringred;

namespace {

void check_in(const Channel& channel, const Schedule& schedule) {
  CHECK_EQ(find_flaw(schedule, channel, 0).value_or("right"), std::string("right"));
}

void check_in_all_channels(const Schedule& schedule) {
  for (const Channel& channel : channels) check_in(channel, schedule);
}

// Around powers of two, primes, round numbers: each in one channel, all channels in turn.
void check_many_sizes(Algorithm algorithm) {
  std::size_t turn = 0;
  for (int size : {67, 96, 127, 128, 129, 192, 251, 255, 256, 257, 383, 384, 509, 511, 512, 513, 640, 769, 1000, 1023})
    check_in(channels[turn++ % channels.size()], record(algorithm, size, 16));
}

struct Shape {
  int nodes;
  int local;
};

// One channel for each pair of a shape and an algorithm, all in turn.
void check_shapes(const std::vector<Shape>& shapes) {
  std::size_t turn = 0;
  for (const auto& [nodes, local] : shapes)
    for (const AlgorithmInfo& row : algorithm_table)
      check_in(channels[turn++ % channels.size()], record_two_level(nodes * local, local, row.algorithm, 5));
}

}  // namespace

TEST("ring on 1,024 ranks") {
  check_in_all_channels(record(Algorithm::ring, 1024, 1));
}

TEST("circulant on 1,024 ranks") {
  check_in_all_channels(record(Algorithm::circulant, 1024, 1));
}

TEST("halving_doubling on 1,024 ranks") {
  check_in_all_channels(record(Algorithm::halving_doubling, 1024, 1));
}

TEST("double_tree on 1,024 ranks") {
  for (int chunks : {1, 2, 64}) check_in_all_channels(record(Algorithm::double_tree, 1024, chunks));
}

TEST("recursive_doubling on 1,024 ranks") {
  check_in_all_channels(record(Algorithm::recursive_doubling, 1024, 1));
}

TEST("ring on 67 to 1,023 ranks") {
  check_many_sizes(Algorithm::ring);
}

TEST("circulant on 67 to 1,023 ranks") {
  check_many_sizes(Algorithm::circulant);
}

TEST("halving_doubling on 67 to 1,023 ranks") {
  check_many_sizes(Algorithm::halving_doubling);
}

TEST("double_tree and recursive_doubling on every number of ranks from 65 to 1,024") {
  for (int size = 65; size <= 1024; ++size)
    for (Algorithm algorithm : {Algorithm::double_tree, Algorithm::recursive_doubling})
      check_in(channels[static_cast<std::size_t>(size) % channels.size()], record(algorithm, size, 4));
}

TEST("two levels on 1,024 ranks, 2 to 4 on a node") {
  check_shapes({{512, 2}, {256, 4}});
}

TEST("two levels on 1,024 ranks, 8 on a node") {
  check_shapes({{128, 8}});
}

TEST("two levels on 1,024 ranks, 16 on a node") {
  check_shapes({{64, 16}});
}

TEST("two levels on nodes that are no power of two") {
  check_shapes({{7, 12}, {100, 3}, {31, 6}, {25, 9}, {85, 12}, {127, 8}});
}

TEST("rings within rings on 1,024 ranks") {
  for (int local : {2, 8, 64}) check_in(channels[0], record_hierarchical(1024, local));
}

TEST("a wrong schedule of 1,024 ranks is found out") {
  Schedule schedule = record(Algorithm::circulant, 1024, 1);
  Step& last = schedule.ranks[777][0].back();
  last.in.back() = last.in.front();
  CHECK(find_flaw(schedule, channels[0], 0).value_or("right").find("rank 777") != std::string::npos);
}
