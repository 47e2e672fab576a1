// What can go wrong in a schedule or in its player, each shown to be noticed: the rule is broken here, and the verifier
// says so.
#include <optional>
#include <string>

#include "csrc/algorithms/algorithms.h"
#include "csrc/algorithms/double_tree.h"
#include "csrc/algorithms/halving_doubling.h"
#include "csrc/algorithms/hierarchical.h"
#include "csrc/schedule/predict.h"
#include "csrc/schedule/recorder.h"
#include "csrc/schedule/verify.h"
#include "tests/check.h"

using namespace ringred;

namespace {

const Channel& eight_slots = channels[2];
const Channel& pull = channels[4];

std::string flaw(const Schedule& schedule, const Channel& channel, const PlayerRules& rules = {}) {
  return find_flaw(schedule, channel, 0, rules).value_or("right");
}

// The first flaw in any channel and some orders.
std::string any_flaw(const Schedule& schedule) {
  for (const Channel& channel : channels)
    for (std::uint32_t seed = 0; seed < 20; ++seed)
      if (const auto found = find_flaw(schedule, channel, seed)) return *found;
  return "right";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The tempting meaning of exchange: send all, then receive all.
class BulkExchange {
 public:
  explicit BulkExchange(Recorder& ops) : ops_(ops) {}
  void send(int to, const Chunks& chunks) { ops_.send(to, chunks); }
  void recv(int from, const Chunks& chunks) { ops_.recv(from, chunks); }
  void reduce(int from, const Chunks& chunks) { ops_.reduce(from, chunks); }
  void exchange(int to, const Chunks& out, int from, const Chunks& in, Act act = Act::receive) {
    ops_.send(to, out);
    if (act == Act::reduce)
      ops_.reduce(from, in);
    else
      ops_.recv(from, in);
  }
  void lane(int number) { ops_.lane(number); }

 private:
  Recorder& ops_;
};

Schedule bulk_hierarchical(int size, int local) {
  return record_schedule("hierarchical, bulk exchange", size, size, [&](Recorder& recorder, int rank) {
    BulkExchange ops(recorder);
    hierarchical(ops, rank, size, local);
  });
}

Schedule bulk_halving_doubling(int size) {
  const int chunks = power_of_two_within(size);
  return record_schedule("halving_doubling, bulk exchange", size, chunks, [&](Recorder& recorder, int rank) {
    BulkExchange ops(recorder);
    halving_doubling(ops, rank, size);
  });
}

// Up and down in one lane: the trees' chunks come down `lag` chunks after they went up.
Schedule one_lane_double_tree(int size, int chunks) {
  return record_schedule("double_tree, one lane", size, chunks, [&](Recorder& ops, int rank) {
    const TreeNode nodes[2] = {ruler_tree(rank, size), second_tree(rank, size)};
    const int lag = ceil_log2(size);
    for (int turn = 0; turn < chunks + lag; ++turn) {
      const TreeNode& up = nodes[turn % 2];
      for (int child : up.children)
        if (turn < chunks) ops.reduce(child, turn);
      if (turn < chunks && up.parent >= 0) ops.send(up.parent, turn);
      if (turn < lag) continue;
      const TreeNode& down = nodes[(turn - lag) % 2];
      if (down.parent >= 0) ops.recv(down.parent, turn - lag);
      for (int child : down.children) ops.send(child, turn - lag);
    }
  });
}

Step& step_of(Schedule& schedule, std::size_t rank, std::size_t step) {
  return schedule.ranks[rank][0][step];
}

}  // namespace

TEST("an exchange that sends all, then receives all, deadlocks, but only on many ranks") {
  CHECK_EQ(flaw(bulk_hierarchical(8, 2), eight_slots), std::string("right"));
  CHECK_EQ(flaw(bulk_halving_doubling(16), eight_slots), std::string("right"));
  CHECK(contains(flaw(bulk_hierarchical(24, 2), eight_slots), "deadlock"));
  CHECK(contains(flaw(bulk_halving_doubling(32), eight_slots), "deadlock"));
  CHECK_EQ(flaw(record_hierarchical(24, 2), eight_slots), std::string("right"));
  CHECK_EQ(flaw(record(Algorithm::halving_doubling, 32, 1), eight_slots), std::string("right"));
}

TEST("up and down a tree are separate lanes: one lane is right and about twice as slow") {
  const Cost cost{.alpha = 0.15e-6, .beta = 1e-10, .gamma = 0.5e-10};  // 10 GB/s each way, reduces 20 GB/s
  const double bytes = 16 << 20;
  const Schedule together = one_lane_double_tree(8, 32);
  CHECK_EQ(any_flaw(together), std::string("right"));
  const double slow = predict_seconds(together, bytes, cost);
  const double fast = predict_seconds(record(Algorithm::double_tree, 8, 32), bytes, cost);
  CHECK(slow > 1.8 * fast);
}

TEST("where a step sends and takes the same chunk, in may not run ahead of out") {
  const Schedule schedule = record(Algorithm::recursive_doubling, 4, 1);
  // Two chunks, so that the second can come in before it has gone out.
  Schedule two = record_schedule("swap", 2, 2, [](Recorder& ops, int rank) {
    ops.exchange(1 - rank, chunk_range(0, 2), 1 - rank, chunk_range(0, 2), Act::reduce);
  });
  bool noticed = false;
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    CHECK(!find_flaw(schedule, channels[0], seed));
    CHECK(!find_flaw(two, channels[0], seed));
    noticed |= contains(find_flaw(two, channels[0], seed, {.in_behind_out = false}).value_or(""), "double count");
  }
  CHECK(noticed);
}

TEST("a chunk that a peer has yet to read may not be overwritten") {
  bool noticed = false;
  for (std::uint32_t seed = 0; seed < 10; ++seed) {
    const Schedule schedule = record(Algorithm::recursive_doubling, 8, 1);
    CHECK(!find_flaw(schedule, pull, seed));
    noticed |= contains(find_flaw(schedule, pull, seed, {.write_after_read = false}).value_or(""), "yet to read");
  }
  CHECK(noticed);
}

TEST("a step that waits for no other lane is noticed") {
  Schedule schedule = record(Algorithm::double_tree, 5, 4);
  for (std::vector<Lane>& lanes : schedule.ranks)
    for (Lane& lane : lanes)
      for (Step& step : lane) step.after.clear();
  CHECK(any_flaw(schedule) != "right");
}

TEST("a step that waits for itself is a deadlock") {
  Schedule schedule = record(Algorithm::ring, 3, 1);
  step_of(schedule, 1, 2).after.push_back({0, 2});
  CHECK(contains(any_flaw(schedule), "rank 1, lane 0, step 2 waits for another lane"));
}

TEST("a missing step is noticed") {
  Schedule schedule = record(Algorithm::ring, 4, 1);
  schedule.ranks[2][0].pop_back();
  CHECK(any_flaw(schedule) != "right");
  Schedule everywhere = record(Algorithm::ring, 4, 1);
  for (std::vector<Lane>& lanes : everywhere.ranks) lanes[0].pop_back();
  CHECK(contains(any_flaw(everywhere), "incomplete"));
}

TEST("a double count is noticed, with rank, lane, step and chunk") {
  Schedule schedule = record(Algorithm::ring, 3, 1);
  for (std::size_t rank = 0; rank < 3; ++rank) step_of(schedule, rank, 2).act = Act::reduce;
  const std::string text = any_flaw(schedule);
  CHECK(contains(text, "double count"));
  for (const char* word : {"rank ", "lane 0", "step 2", "chunk "}) CHECK(contains(text, word));
}

TEST("an unconsumed message is noticed") {
  Schedule schedule = record(Algorithm::ring, 2, 1);
  schedule.ranks[1][0].push_back({Act::none, 0, {1}, -1, {}, {}});
  CHECK(contains(flaw(schedule, eight_slots), "rank 0 never takes chunk 1 that rank 1 sent"));
}

TEST("chunks in another order, and messages cut elsewhere, are noticed") {
  Schedule order = record(Algorithm::halving_doubling, 4, 1);
  std::swap(step_of(order, 0, 0).out[0], step_of(order, 0, 0).out[1]);
  CHECK(contains(any_flaw(order), "wants chunk"));
  Schedule cut = record_schedule("cut", 2, 2, [](Recorder& ops, int rank) {
    if (rank == 0) ops.send(1, chunk_range(0, 2));
    if (rank == 1) ops.reduce(0, 0);
    if (rank == 1) ops.reduce(0, 1);
  });
  CHECK(contains(any_flaw(cut), "cuts its messages elsewhere"));
}

TEST("verify throws the first flaw") {
  Schedule schedule = record(Algorithm::ring, 4, 1);
  verify(schedule);
  step_of(schedule, 0, 0).act = Act::receive;
  CHECK_THROWS(verify(schedule), "a schedule must be right: ring on 4 ranks (eager, 1 slot)");
  schedule.size = 1025;
  CHECK_THROWS(verify(schedule), "at most 1024 ranks: it has 1025");
}

TEST("a recorder refuses steps that cannot be played") {
  Recorder ops(0, 4, 4);
  CHECK_THROWS(ops.send(0, 1), "another rank of 0..3: rank 0 names 0");
  CHECK_THROWS(ops.recv(4, 1), "rank 0 names 4");
  CHECK_THROWS(ops.reduce(1, 4), "one of 0..3: rank 0 names 4");
  CHECK_THROWS(ops.exchange(1, chunk_range(0, 2), 1, chunk_range(1, 2)), "sends and takes chunk 1 among others");
}

TEST("a step waits for the last step of another lane that it could disturb, and for no other") {
  Recorder ops(0, 3, 2);
  ops.reduce(1, 0);  // lane 0, step 0 writes chunk 0
  ops.send(1, 1);    // lane 0, step 1 reads chunk 1
  ops.lane(1);
  ops.send(2, 0);  // reads what step 0 wrote
  ops.send(2, 1);  // reads what nobody wrote
  ops.recv(2, 1);  // overwrites what step 1 reads
  ops.lane(0);
  ops.recv(1, 0);  // overwrites what lane 1, step 0 reads
  const std::vector<Lane> lanes = ops.take();
  using After = std::vector<Dependency>;
  CHECK((lanes[1][0].after == After{{0, 0}}));
  CHECK((lanes[1][1].after == After{}));
  CHECK((lanes[1][2].after == After{{0, 1}}));
  CHECK((lanes[0][2].after == After{{1, 0}}));
}
