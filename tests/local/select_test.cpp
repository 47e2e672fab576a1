// How a way is chosen: prices, thresholds, fits, and that ranks who are threads choose alike.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "csrc/schedule/predict.h"
#include "csrc/select/calibrate.h"
#include "csrc/select/selection.h"
#include "tests/check.h"
#include "tests/local/ranks.h"

using namespace ringred;
using namespace ringred::check;

namespace {

constexpr double mib = 1 << 20;

Settings plain_settings() {
  return read_settings([](std::string_view) { return std::nullopt; });
}

// Two ranks move as many bytes by doubling as in two shots, with fewer synchronisations, if nothing else costs
// anything.
Costs costs_for_doubling() {
  Costs costs = usual_costs();
  costs[Term::reach] = costs[Term::move] = costs[Term::handle] = 0;
  costs[Term::step] = 0;
  return costs;
}

// The sum of rank + 1 over all ranks, in a vector of `count` doubles of which the last is twice that.
void check_sum(Communicator& communicator, std::size_t count) {
  std::vector<double> data(count, communicator.rank() + 1);
  data.back() *= 2;
  const auto extent = static_cast<std::int64_t>(count);
  const Call call{CallKind::allreduce, Op::sum, DType::f64, -1, {&extent, 1}};
  auto* bytes = reinterpret_cast<std::byte*>(data.data());
  communicator.run(call, communicator.bind(call, bytes, bytes, count));
  const double expected = communicator.size() * (communicator.size() + 1) / 2.0;
  CHECK_EQ(data.front(), count == 1 ? 2 * expected : expected);
  CHECK_EQ(data.back(), 2 * expected);
}

}  // namespace

TEST("what a schedule is priced by is what its steps do") {
  for (const AlgorithmInfo& row : algorithm_table)
    for (int ranks = 2; ranks <= 17; ++ranks) {
      const Placement placement{1, ranks};
      const int depth = row.algorithm == Algorithm::double_tree ? 64 : 1;
      const Counts counts = count(record(row.algorithm, ranks, depth));
      const Terms terms = terms_of(*way_named(row.name), 4 * mib, false, placement, 0);
      CHECK(std::abs(terms[Term::move] / (4 * mib) - counts.share) < 1e-9);
      // Where ranks are no power of two, doubling may hide a round behind another.
      const int hidden = row.algorithm == Algorithm::recursive_doubling ? 1 : 0;
      CHECK(terms[Term::synchronise] >= counts.rounds && terms[Term::synchronise] <= counts.rounds + hidden);
    }
}

TEST("a choice is the cheapest way at every size, and one shot ends where its slot does") {
  const std::vector<Way> ways{Way::one_shot, Way::two_shot, Way::ring, Way::recursive_doubling};
  for (const int ranks : {2, 4, 7})
    for (const bool arena : {false, true}) {
      const Placement placement{1, ranks};
      const Costs costs = costs_for_doubling();
      const Choice choice = Choice::cheapest(ways, 4096, placement, costs);
      for (std::size_t bytes = 1; bytes <= std::size_t{1} << 26; bytes *= 2) {
        const auto doubted = [&](Way way) {
          return price(way, static_cast<double>(bytes), arena, placement, costs) * (schedule_of(way) ? doubt : 1);
        };
        double least = std::numeric_limits<double>::infinity();
        for (const Way way : ways)
          if (way != Way::one_shot || bytes <= 4096) least = std::min(least, doubted(way));
        CHECK_EQ(doubted(choice.of(bytes, arena)), least);
      }
      CHECK(choice.of(4097, arena) != Way::one_shot);
      CHECK(choice.of(std::numeric_limits<std::size_t>::max(), arena) != Way::one_shot);
    }
}

TEST("a threshold by hand holds to the byte") {
  const Choice choice = Choice::by_hand(1000, Way::hierarchical);
  CHECK(choice.of(0, true) == Way::one_shot && choice.of(1000, false) == Way::one_shot);
  CHECK(choice.of(1001, true) == Way::hierarchical);
}

TEST("a fit finds the costs that made the times, and leaves alone what no time tells of") {
  const Placement placement{1, 4};
  Costs truth = usual_costs();
  for (double& cost : truth.seconds) cost *= 3;
  truth.near_bytes = 8 * mib;
  truth[Term::message] = usual_costs()[Term::message];
  std::vector<Sample> samples;
  for (const Probe& probe : thorough_probes(placement, 256 << 10))
    samples.push_back({probe, price(probe.way, static_cast<double>(probe.bytes), probe.arena, placement, truth)});
  const Costs found = fit(samples, placement, usual_costs());
  CHECK(error_of(found, samples, placement) < 0.05);
  CHECK(error_of(usual_costs(), samples, placement) > 0.5);
  CHECK(found.near_bytes >= truth.near_bytes / 2 && found.near_bytes <= truth.near_bytes * 2);
  CHECK_EQ(found[Term::message], truth[Term::message]);
  const std::vector<Way> ways{Way::one_shot, Way::two_shot};
  const Choice left = Choice::cheapest(ways, 1 << 20, placement, truth),
               right = Choice::cheapest(ways, 1 << 20, placement, found);
  int different = 0;  // of four sizes in each octave, one at a threshold may be
  for (int step = 0; step < 120; ++step) {
    const auto bytes = static_cast<std::size_t>(std::exp2(step / 4.0));
    different += left.of(bytes, false) != right.of(bytes, false);
  }
  CHECK(different <= 1);
}

TEST("a calibration ends when its time is over, and keeps the first probes") {
  int calls = 0;
  const std::vector<Probe> probes = brief_probes(1 << 18);
  double clock = 0;
  const auto samples = measure(probes, 1.0, [&](const Probe&, int iterations) {
    ++calls;
    clock += 0.4 * iterations;  // slow beyond all plans
    return Timed{0.4, clock};
  });
  CHECK(samples.size() < probes.size() && !samples.empty());
  CHECK(clock < 2.5);
  CHECK(samples.front().probe.bytes == 8);
}

TEST("without a file only ways that add in the order of the ranks are chosen") {
  const Placement pair{1, 2};
  const Selection measured(plain_settings(), pair, std::nullopt), tuned(plain_settings(), pair, costs_for_doubling());
  bool doubles = false;
  for (std::size_t bytes = 1; bytes < std::size_t{1} << 30; bytes *= 2) {
    CHECK(!schedule_of(measured.chosen(bytes, false)));
    doubles |= tuned.chosen(bytes, false) == Way::recursive_doubling;
  }
  CHECK(doubles);
  CHECK(tuned.of(1 << 20, true) == Way::recursive_doubling);
  CHECK(tuned.of(1 << 20, false) == Way::two_shot);  // what has to be converted
}

TEST("across many nodes doublings are chosen without a file, by their number alone") {
  const auto calls = [](int nodes, std::size_t bytes, bool even = true) {
    return Selection(plain_settings(), {nodes, 2, 512 << 10, 64 << 10, even}, std::nullopt).of(bytes, true);
  };
  for (std::size_t bytes = 1; bytes < std::size_t{1} << 30; bytes *= 2) {
    CHECK(calls(2, bytes) == Way::hierarchical && calls(31, bytes) == Way::hierarchical);
    CHECK(calls(64, bytes, false) == Way::hierarchical);
    const Way named = Choice::across_nodes("auto", {32, 2}, false).of(bytes, false);
    CHECK(named == Way::recursive_doubling || named == Way::halving_doubling);
    CHECK(calls(32, bytes) == (bytes <= 512 ? Way::hierarchical : named));  // one message to each node
  }
  CHECK(calls(32, 4 << 10) == Way::recursive_doubling && calls(32, 64 << 20) == Way::halving_doubling);
  CHECK(Choice::across_nodes("ring", {2, 2}, false).of(8, false) == Way::ring);
  CHECK(Choice::across_nodes("two_shot", {32, 2}, false).of(64 << 10, false) == Way::hierarchical);
}

TEST("by hand: algorithms and thresholds") {
  Settings settings = plain_settings();
  settings.algorithm = "ring";
  CHECK(Selection(settings, {1, 4}, std::nullopt).of(8, true) == Way::ring);
  CHECK(Selection(settings, {2, 2}, std::nullopt).of(8, true) == Way::ring);
  settings.algorithm = "hierarchical";
  CHECK(Selection(settings, {1, 4}, std::nullopt).of(8, true) == Way::two_shot);
  CHECK(Selection(settings, {2, 2}, std::nullopt).of(8, true) == Way::hierarchical);
  CHECK(Selection(plain_settings(), {2, 2}, std::nullopt).of(8, true) == Way::hierarchical);
  settings.algorithm = "one_shot";
  CHECK(Selection(settings, {1, 4}, std::nullopt).of(1 << 18, true) == Way::one_shot);
  CHECK(Selection(settings, {1, 4}, std::nullopt).of((1 << 18) + 1, true) == Way::two_shot);  // no slot is so large
  settings.algorithm = "auto";
  settings.one_shot_bytes = 64;
  settings.one_shot_given = true;
  const Selection by_hand(settings, {1, 4}, std::nullopt);
  CHECK(by_hand.of(64, true) == Way::one_shot && by_hand.of(65, true) == Way::two_shot);
  CHECK(!by_hand.is_due(4096));
}

TEST("the kind of the arrays is taken from the last call of about the size") {
  Selection selection(plain_settings(), {1, 2}, usual_costs());
  std::size_t bytes = 2048;
  while (selection.chosen(bytes, true) == selection.chosen(bytes, false)) bytes *= 2;
  CHECK(selection.of(bytes, true) == selection.chosen(bytes, false));
  selection.saw(bytes, true);
  CHECK(selection.of(bytes, true) == selection.chosen(bytes, true));
  selection.saw(bytes, false);
  CHECK(selection.of(bytes, true) == selection.chosen(bytes, false));
}

TEST("ranks measure once, at the first call that needs it, within the time, and choose alike") {
  Settings settings = small_settings();
  settings.one_shot_given = false;
  settings.slot_bytes = 64 << 10;
  std::mutex mutex;
  std::vector<Costs> all;
  run_ranks(3, settings, [&](Communicator& communicator) {
    check_sum(communicator, 1);
    CHECK(communicator.selection().is_due(4096));  // eight bytes need no costs
    const auto begin = std::chrono::steady_clock::now();
    check_sum(communicator, 512);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    CHECK(sanitized || took.count() < 1);  // 0.05 on a machine that does nothing else
    CHECK(!communicator.selection().is_due(4096));
    for (const std::size_t count : {1ul, 100ul, 5000ul, 100000ul}) check_sum(communicator, count);
    const std::lock_guard lock(mutex);
    all.push_back(communicator.selection().costs());
  });
  CHECK_EQ(all.size(), std::size_t{3});
  CHECK(all[0].seconds == all[1].seconds && all[1].seconds == all[2].seconds);
  CHECK(all[0].seconds != usual_costs().seconds);
}

TEST("ways follow each other in one communicator, forced or chosen") {
  run_ranks(4, small_settings(), [&](Communicator& communicator) {
    for (int round = 0; round < 3; ++round)
      for (const Way way : communicator.selection().ways()) {
        communicator.force(way);
        for (const std::size_t count : {1ul, 4ul, 16ul, 1000ul}) check_sum(communicator, count);
        communicator.force(std::nullopt);
        check_sum(communicator, 77);
      }
  });
}
