// The figures that the algorithms' comments and table promise, and the drawings.
#include "csrc/schedule/predict.h"

#include <cmath>
#include <string>

#include "csrc/algorithms/algorithms.h"
#include "csrc/algorithms/tree.h"
#include "csrc/schedule/draw.h"
#include "csrc/schedule/recorder.h"
#include "tests/check.h"

using namespace ringred;

namespace {

bool near(double left, double right) {
  return std::abs(left - right) <= 1e-9 * std::abs(right);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST("ring: 2(n-1) rounds, 2(n-1)/n of the vector") {
  for (int size = 1; size <= 64; ++size) {
    const Counts counts = count(record(Algorithm::ring, size, 1));
    CHECK_EQ(counts.rounds, 2 * (size - 1));
    CHECK_EQ(counts.messages, 2 * (size - 1));
    CHECK(near(counts.share, 2.0 * (size - 1) / size));
  }
}

TEST("circulant: 2 ceil(log2 n) rounds, 2(n-1)/n of the vector, for any n") {
  for (int size = 1; size <= 64; ++size) {
    const Counts counts = count(record(Algorithm::circulant, size, 1));
    CHECK_EQ(counts.rounds, 2 * ceil_log2(size));
    CHECK_EQ(counts.messages, 2 * ceil_log2(size));
    CHECK(near(counts.share, 2.0 * (size - 1) / size));
  }
}

TEST("the doubling algorithms: log2 p rounds, or twice that, and two more where n is not p") {
  for (int size = 1; size <= 64; ++size) {
    const int power = power_of_two_within(size), logarithm = ceil_log2(power), folded = power == size ? 0 : 1;
    const Counts doubling = count(record(Algorithm::recursive_doubling, size, 1));
    // With one lending rank its two rounds are not on the same chain.
    CHECK(doubling.rounds >= logarithm + folded && doubling.rounds <= logarithm + 2 * folded);
    CHECK(near(doubling.share, logarithm + folded));
    const Counts halving = count(record(Algorithm::halving_doubling, size, 1));
    CHECK(halving.rounds >= 2 * logarithm + folded && halving.rounds <= 2 * logarithm + 2 * folded);
    CHECK(near(halving.share, 2.0 * (power - 1) / power + folded));
  }
}

TEST("double_tree: at most 2 ceil(log2 n) rounds for a chunk, about twice the vector") {
  for (int size = 1; size <= 64; ++size) {
    const Counts counts = count(record(Algorithm::double_tree, size, 16));
    CHECK(counts.rounds <= 2 * ceil_log2(size));
    CHECK(counts.share <= 2.0);
  }
}

TEST("the inner ranks of one tree are leaves of the other, but for rank 0 of an odd number") {
  for (int size = 3; size <= 64; ++size)
    for (int rank = 0; rank < size; ++rank) {
      const bool inner_twice = !ruler_tree(rank, size).children.empty() && !second_tree(rank, size).children.empty();
      CHECK(!inner_twice || (size % 2 == 1 && rank == 0));
    }
}

TEST("in both trees every child names its parent, and every rank reaches the root") {
  for (int size = 1; size <= 64; ++size)
    for (auto tree : {ruler_tree, second_tree}) {
      int roots = 0;
      for (int rank = 0; rank < size; ++rank) {
        for (int child : tree(rank, size).children) CHECK_EQ(tree(child, size).parent, rank);
        int above = rank;
        for (int hop = 0; hop < 8 && tree(above, size).parent >= 0; ++hop) above = tree(above, size).parent;
        CHECK_EQ(tree(above, size).parent, -1);
        roots += tree(rank, size).parent < 0 ? 1 : 0;
      }
      CHECK_EQ(roots, 1);
    }
}

TEST("the time of a ring is its closed form") {
  const Cost cost{.alpha = 3, .beta = 5, .gamma = 7, .step = 0.5};
  const int size = 8;
  const double chunk = 16.0 / size;
  const double expected =
      2 * (size - 1) * (cost.alpha + chunk * cost.beta + cost.step) + (size - 1) * chunk * cost.gamma;
  CHECK(near(predict_seconds(record(Algorithm::ring, size, 1), 16, cost), expected));
}

TEST("a hierarchy across nodes sends its shard only") {
  const Counts counts = count(record_hierarchical(16, 4));
  CHECK_EQ(counts.rounds, 2 * 3 + 2 * 3);
  CHECK(near(counts.share, 2.0 * 3 / 4 + 2.0 * 3 / 4 / 4));
}

TEST("a schedule that never ends has no time") {
  const Schedule schedule = record_schedule("stuck", 2, 1, [](Recorder& ops, int rank) { ops.recv(1 - rank, 0); });
  CHECK_THROWS(predict_seconds(schedule, 8, {}), "2 steps wait for ever");
}

TEST("the drawing of a ring") {
  const std::string expected =
      "ring: ranks 3, chunks 3, rounds 4; the busiest rank sends 4 messages, 1.33 times the vector\n"
      "  2>1 sends chunk 2 to rank 1; 2<1 takes chunk 2 from rank 1; 2+<1 adds it to its own\n"
      "\n"
      "  step   rank 0     rank 1     rank 2\n"
      "  0      0>1 2+<2   1>2 0+<0   2>0 1+<1\n"
      "  1      2>1 1+<2   0>2 2+<0   1>0 0+<1\n"
      "  2      1>1 0<2    2>2 1<0    0>0 2<1\n"
      "  3      0>1 2<2    1>2 0<0    2>0 1<1\n";
  CHECK_EQ(draw(record(Algorithm::ring, 3, 1)), expected);
}

TEST("a drawing names ranges, lanes and what a step waits for") {
  CHECK(contains(draw(record(Algorithm::halving_doubling, 4, 1)), "2-3>2 0-1+<2"));
  CHECK(contains(draw(record(Algorithm::circulant, 5, 1)), "4,0>4 1-2+<3"));
  const std::string trees = draw(record(Algorithm::double_tree, 4, 4));
  CHECK(contains(trees, "\nlane 3\n"));
  CHECK(contains(trees, "@0.3 after step 3 of lane 0"));
  CHECK(contains(draw(record(Algorithm::ring, 1, 1)), "rank 0"));
}
