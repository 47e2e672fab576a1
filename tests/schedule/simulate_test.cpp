// The simulator against closed forms, and representatives against all ranks.
#include "csrc/schedule/simulate.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "csrc/algorithms/forecast.h"
#include "csrc/schedule/recorder.h"
#include "tests/check.h"

using namespace ringred;

namespace {

// Sums in another order differ in the last bits.
bool near(double left, double right) {
  return std::abs(left - right) <= 1e-9 * std::abs(right);
}

const LinkLoad& load(const Simulated& result, LinkKind kind) {
  return result.loads[static_cast<std::size_t>(kind)];
}

double between_cards(const LinkLoad& out, const LinkLoad& in) {
  return std::abs(out.bytes - in.bytes);
}

// Every rank of node 0 sends `bytes` to the rank with the same place in node 1.
Schedule one_way(int local) {
  return record_schedule("one way", 2 * local, 1, [=](Recorder& ops, int rank) {
    if (rank < local)
      ops.send(rank + local, 0);
    else
      ops.recv(rank - local, 0);
  });
}

// Costs of which no two are multiples of each other, so that no error can hide.
Hardware odd_hardware(int local) {
  return {.local = local,
          .memory = {0.7e-6, 1.1e-11},
          .card = {2.3e-6, 4.3e-11},
          .core = {0.5e-6, 1.7e-11},
          .gamma = 0.9e-11,
          .step = 0.13e-6};
}

}  // namespace

TEST("a ring of nodes with one rank: 2(n-1)(alpha + S/n beta + step) + (n-1) S/n gamma") {
  const Hardware hardware = odd_hardware(1);
  for (int nodes : {2, 3, 8, 31}) {
    const double bytes = 1e6, chunk = bytes / nodes;
    const double each = hardware.card.alpha + chunk * hardware.card.beta + hardware.step;
    const double expected = 2 * (nodes - 1) * each + (nodes - 1) * chunk * hardware.gamma;
    CHECK(near(forecast("ring", {nodes, bytes}, hardware).simulated.seconds, expected));
  }
}

TEST("recursive doubling of nodes with one rank: log2 n (alpha + S beta + step + S gamma)") {
  const Hardware hardware = odd_hardware(1);
  for (int rounds : {1, 3, 14}) {
    const double bytes = 1e6;
    const double each = hardware.card.alpha + bytes * (hardware.card.beta + hardware.gamma) + hardware.step;
    const Forecast one = forecast("recursive_doubling", {1 << rounds, bytes}, hardware);
    CHECK(near(one.simulated.seconds, rounds * each));
    CHECK_EQ(one.ranks_played, 1);
  }
}

TEST("k ranks that share a card take k times as long, and their receivers' card is as busy") {
  const double bytes = 1e6;
  for (int local : {1, 2, 7}) {
    Hardware hardware{.local = local, .card = {2e-6, 4e-11}};
    const Simulated result = simulate(outline_of(one_way(local)), bytes, hardware);
    CHECK(near(result.seconds, 2e-6 + local * bytes * 4e-11));
    CHECK(near(load(result, LinkKind::card_out).bytes, local * bytes));
    CHECK(near(load(result, LinkKind::card_in).busiest, local * bytes * 4e-11 / result.seconds));
    CHECK(near(load(result, LinkKind::card_in).mean, local * bytes * 4e-11 / result.seconds / 2));
    CHECK_EQ(load(result, LinkKind::memory).bytes, 0.0);
  }
}

TEST("k senders of k nodes queue at their one receiver's card") {
  const double bytes = 1e6;
  const Schedule fan_in = record_schedule("fan in", 6, 1, [](Recorder& ops, int rank) {
    if (rank > 0) return ops.send(0, 0);
    for (int from = 1; from < 6; ++from) ops.reduce(from, 0);
  });
  const Hardware hardware{.card = {2e-6, 4e-11}};
  CHECK(near(simulate(outline_of(fan_in), bytes, hardware).seconds, 2e-6 + 5 * bytes * 4e-11));
}

TEST("ranks of a node share its memory, and messages in a node do not touch the card") {
  const double bytes = 1e6;
  const Hardware hardware{.local = 8, .memory = {0.5e-6, 1e-11}, .card = {2e-6, 4e-11}};
  const Forecast ring = forecast("ring", {1, bytes}, hardware);
  // A round's messages keep the memory busy for 8 * 1.25 us, longer than the first takes to come out: no gaps.
  CHECK(near(ring.simulated.seconds, 14 * bytes * 1e-11 + 0.5e-6));
  CHECK(near(load(ring.simulated, LinkKind::memory).bytes, 14 * bytes));
  CHECK_EQ(load(ring.simulated, LinkKind::card_out).bytes, 0.0);
}

TEST("a direct exchange pays the latency of memory once in each direction") {
  const double bytes = 1e6;
  const Hardware hardware{.local = 8, .memory = {0.5e-6, 1e-11}};
  const Forecast leaf = forecast("hierarchical", {1, bytes}, hardware);
  CHECK(leaf.simulated.seconds >= 14 * bytes * 1e-11 + 0.5e-6);
  CHECK(leaf.simulated.seconds <= 14 * bytes * 1e-11 + 2 * 0.5e-6 + 1e-12);
}

TEST("messages take different uplinks, and queue where there are too few") {
  const Schedule shifted = record_schedule("halves", 8, 1, [](Recorder& ops, int rank) {
    ops.exchange((rank + 4) % 8, 0, (rank + 4) % 8, 0, Act::receive);
  });
  for (int uplinks : {1, 2, 4}) {
    const Hardware hardware{.card = {2e-6, 4e-11}, .nodes_per_switch = 4, .uplinks = uplinks, .core = {1e-6, 4e-11}};
    const Simulated result = simulate(outline_of(shifted), 1e6, hardware);
    CHECK(near(result.seconds, 3e-6 + 4 / uplinks * 1e6 * 4e-11));
    CHECK_EQ(load(result, LinkKind::core_up).links, 2 * uplinks);
    CHECK(near(load(result, LinkKind::core_up).mean, 4 / uplinks * 1e6 * 4e-11 / result.seconds));
  }
}

TEST("the core is slower by the oversubscription, and only messages between switches pass it") {
  const double bytes = 1e6;
  // Two nodes on a switch, which together get half a card's bandwidth upwards: oversubscribed four times.
  const Hardware hardware{.card = {2e-6, 4e-11}, .nodes_per_switch = 2, .core = {1e-6, 8e-11}};
  const auto swap_with = [&](int distance) {
    return simulate(outline_of(record_schedule("swap", 4, 1,
                                               [=](Recorder& ops, int rank) {
                                                 ops.exchange(rank ^ distance, 0, rank ^ distance, 0, Act::reduce);
                                               })),
                    bytes, hardware);
  };
  CHECK(near(swap_with(1).seconds, 2e-6 + bytes * 4e-11));
  CHECK_EQ(load(swap_with(1), LinkKind::core_up).bytes, 0.0);
  CHECK(near(swap_with(2).seconds, 3e-6 + 2 * bytes * 8e-11));
  CHECK(near(load(swap_with(2), LinkKind::core_up).bytes, 4 * bytes));
  CHECK(near(load(swap_with(2), LinkKind::core_down).bytes, 4 * bytes));
}

TEST("the lanes of a rank take turns on its card") {
  // Lane 0 has three messages, lane 1 one, which is handed on four times: it goes second, not last.
  const Schedule schedule = record_schedule("turns", 7, 4, [](Recorder& ops, int rank) {
    if (rank == 0)
      for (int chunk : {0, 1, 2}) ops.send(1, chunk);
    if (rank == 1)
      for (int chunk : {0, 1, 2}) ops.recv(0, chunk);
    ops.lane(1);
    if (rank == 0) ops.send(2, 3);
    if (rank >= 2) ops.recv(rank == 2 ? 0 : rank - 1, 3);
    if (rank >= 2 && rank < 6) ops.send(rank + 1, 3);
  });
  const double chunk = 1e6 * 4e-11;
  CHECK(near(simulate(outline_of(schedule), 4e6, {.card = {2e-6, 4e-11}}).seconds, 6 * chunk + 5 * 2e-6));
}

TEST("a chunk that is sent and taken in one step is added to only when it has been sent") {
  // Rank 1 sends chunk 0 behind four chunks of rank 0; what it takes for it comes long before.
  const Schedule schedule = record_schedule("swap", 4, 5, [](Recorder& ops, int rank) {
    if (rank == 0) ops.send(3, chunk_range(1, 4));
    if (rank == 1) ops.exchange(2, 0, 2, 0, Act::reduce);
    if (rank == 1) ops.send(3, 0);
    if (rank == 2) ops.exchange(1, 0, 1, 0, Act::reduce);
    if (rank == 3) ops.recv(0, chunk_range(1, 4));
    if (rank == 3) ops.recv(1, 0);
  });
  const Hardware hardware{.local = 2, .card = {2e-6, 4e-11}, .gamma = 9e-11};
  const double chunk = 1e6 * 4e-11, reduced = 1e6 * 9e-11;
  CHECK(near(simulate(outline_of(schedule), 5e6, hardware).seconds, 6 * chunk + reduced + 2e-6));
}

TEST("a rank reduces for one message at a time") {
  const double bytes = 1e6;
  const Schedule two_lanes = record_schedule("two lanes", 3, 2, [](Recorder& ops, int rank) {
    ops.lane(rank == 2 ? 1 : 0);
    if (rank > 0) return ops.send(0, rank - 1);
    ops.reduce(1, 0);
    ops.lane(1);
    ops.reduce(2, 1);
  });
  const double expected = 1e-6 + 2 * (bytes / 2) * 3e-11;
  CHECK(near(simulate(outline_of(two_lanes), bytes, {.card = {1e-6, 0}, .gamma = 3e-11}).seconds, expected));
}

TEST("bytes are conserved: what leaves cards comes in, and all of it is what the schedule sends") {
  const Job job{8, 3e6, 8};
  for (int local : {1, 4})
    for (const AlgorithmInfo& row : algorithm_table) {
      const Hardware hardware = odd_hardware(local);
      const Outline full = outline_flat(row.algorithm, job, hardware, true);
      double sent = 0;
      for (const auto& lanes : full.ranks)
        for (const OutlineLane& lane : lanes)
          for (const OutlineStep& step : lane.steps) sent += step.out * job.bytes / full.chunks;
      const Simulated result = simulate(full, job.bytes, hardware);
      const LinkLoad &out = load(result, LinkKind::card_out), &in = load(result, LinkKind::card_in);
      CHECK(between_cards(out, in) <= 1e-9 * sent);
      CHECK(near(out.bytes + load(result, LinkKind::memory).bytes, sent));
    }
}

namespace {

// Exactly: both add and compare the same numbers in the same order.
void check_representative(const Outline& some, const Outline& all, const Job& job, const Hardware& hardware) {
  CHECK(some.ranks.size() < all.ranks.size());
  const Simulated one = simulate(some, job.bytes, hardware), full = simulate(all, job.bytes, hardware);
  CHECK_EQ(one.seconds, full.seconds);
  CHECK(near(one.messages, full.messages));
  for (std::size_t kind = 0; kind < one.loads.size(); ++kind) {
    CHECK_EQ(one.loads[kind].links, full.loads[kind].links);
    CHECK_EQ(one.loads[kind].busiest, full.loads[kind].busiest);
    CHECK(std::abs(one.loads[kind].bytes - full.loads[kind].bytes) <= 1e-9 * full.loads[kind].bytes);
    CHECK(std::abs(one.loads[kind].mean - full.loads[kind].mean) <= 1e-9 * full.loads[kind].mean);
  }
}

void check_representatives(Algorithm algorithm, const Job& job, const Hardware& hardware) {
  check_representative(outline_flat(algorithm, job, hardware), outline_flat(algorithm, job, hardware, true), job,
                       hardware);
  check_representative(outline_two_level(algorithm, job, hardware), outline_two_level(algorithm, job, hardware, true),
                       job, hardware);
}

}  // namespace

TEST("the ranks of one node stand for all, exactly: any number of nodes") {
  for (Algorithm algorithm : {Algorithm::ring, Algorithm::circulant})
    for (int local : {1, 2, 3, 8})
      for (int nodes : {2, 3, 4, 7, 16, 24})
        for (double bytes : {0.0, 1e3, 1e6, 1e8}) check_representatives(algorithm, {nodes, bytes}, odd_hardware(local));
}

TEST("the ranks of one node stand for all, exactly: powers of two") {
  for (Algorithm algorithm : {Algorithm::halving_doubling, Algorithm::recursive_doubling})
    for (int local : {1, 2, 8})
      for (int nodes : {2, 4, 16, 32})
        for (double bytes : {0.0, 1e3, 1e6, 1e8}) check_representatives(algorithm, {nodes, bytes}, odd_hardware(local));
}

TEST("the ranks of one switch stand for all, exactly") {
  for (Algorithm algorithm : {Algorithm::ring, Algorithm::circulant, Algorithm::halving_doubling})
    for (int local : {1, 4})
      for (int nodes_per_switch : {1, 2, 4})
        for (int nodes : {8, 16})
          for (double bytes : {1e3, 1e7}) {
            Hardware hardware = odd_hardware(local);
            hardware.nodes_per_switch = nodes_per_switch;
            hardware.uplinks = std::max(1, nodes_per_switch / 2);
            check_representatives(algorithm, {nodes, bytes}, hardware);
          }
}

TEST("where not all nodes do the same, all ranks are played") {
  const auto played = [](std::string_view name, int nodes, int local, int nodes_per_switch) {
    Hardware hardware = odd_hardware(local);
    hardware.nodes_per_switch = nodes_per_switch;
    return forecast(name, {nodes, 1e6}, hardware).ranks_played;
  };
  CHECK_EQ(played("ring", 6, 3, 0), 3);
  CHECK_EQ(played("ring", 6, 3, 2), 6);
  CHECK_EQ(played("ring", 6, 3, 4), 18);
  CHECK_EQ(played("halving_doubling", 8, 4, 0), 4);
  CHECK_EQ(played("halving_doubling", 8, 3, 0), 24);
  CHECK_EQ(played("halving_doubling", 6, 4, 0), 24);
  CHECK_EQ(played("double_tree", 8, 4, 0), 32);
}

TEST("hierarchical sends one vector's worth from a card where flat algorithms send as many as ranks share it") {
  const Job job{64, 1e8};
  const Hardware hardware = odd_hardware(8);
  const Simulated flat = forecast("halving_doubling", job, hardware).simulated;
  const Forecast two = forecast("hierarchical", job, hardware);
  CHECK(near(load(two.simulated, LinkKind::card_out).bytes / 64, 2.0 * 63 / 64 * job.bytes));
  CHECK(near(load(flat, LinkKind::card_out).bytes / 64, 8 * 2 * (1 - 1.0 / 64) * job.bytes));
  CHECK(two.simulated.seconds < flat.seconds);
}

TEST("hierarchical takes the algorithm across that suits the size") {
  const Hardware hardware = odd_hardware(8);
  CHECK_EQ(forecast("hierarchical", {64, 8}, hardware).across, std::string("recursive_doubling"));
  const Forecast large = forecast("hierarchical", {64, 1e8}, hardware);
  for (const AlgorithmInfo& row : algorithm_table)
    CHECK(large.simulated.seconds <=
          simulate(outline_two_level(row.algorithm, {64, 1e8}, hardware), 1e8, hardware).seconds);
}

TEST("one rank takes no time") {
  for (const AlgorithmInfo& row : algorithm_table)
    CHECK_EQ(forecast(row.name, {1, 1e6}, odd_hardware(1)).simulated.seconds, 0.0);
}

TEST("what cannot be simulated is refused with rule, values and remedy") {
  CHECK_THROWS(forecast("rings", {2, 1}, {}), "it is 'rings'");
  CHECK_THROWS(forecast("ring", {0, 1}, {}), "got 0 nodes of 1");
  CHECK_THROWS(forecast("ring", {4096, 1}, odd_hardware(8)), "1 to 16384 ranks");
  CHECK_THROWS(forecast("ring", {1, 1}, {.local = 65}), "at most 64 of them on a node: got 1 nodes of 65");
  CHECK_THROWS(forecast("ring", {2, NAN}, {}), "finite number, 0 or above: got nan");
  CHECK_THROWS(forecast("ring", {2, 1}, {.card = {-1, 0}}), "0 or above: got -1");
  CHECK_THROWS(forecast("double_tree", {2, 1, -1}, {}), "1 to 1024 chunks");
  Hardware hardware = odd_hardware(8);
  hardware.nodes_per_switch = 10;
  CHECK_THROWS(forecast("ring", {1024, 1}, hardware), "nodes (1024) is a multiple of the nodes per switch (10)");
  const Schedule stuck = record_schedule("stuck", 2, 1, [](Recorder& ops, int rank) { ops.recv(1 - rank, 0); });
  CHECK_THROWS(simulate(outline_of(stuck), 8, {}), "2 steps wait for ever");
  CHECK_THROWS(simulate(outline_of(stuck), 8, {.local = 3}), "2 of 2 ranks, 3 on a node");
}
