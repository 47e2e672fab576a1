// The clock of the benchmark: seconds of one call, however many a batch or a graph has; what fails is no figure.
#include <stdexcept>

#include "benchmarks/gpu/session.h"
#include "csrc/cuda/launch.h"
#include "tests/check.h"

namespace ringred::cuda {
namespace {

constexpr double spin_seconds = 2e-4;
constexpr int many = 200;

__global__ void spin(long long ticks) {
  const long long start = clock64();
  while (clock64() - start < ticks) __nanosleep(100);
}

// A machine that is busy takes longer, but not by a factor like the number of calls.
void check_time(const Times& times) {
  CHECK(times.least >= spin_seconds && times.least <= times.median && times.median <= times.most);
  CHECK(times.median < spin_seconds * many / 4);
}

TEST("a time is of one call") {
  Plan plan = rehearsal();
  plan.method = {.warm_ups = 1, .batches = 3, .least_seconds = spin_seconds * many};
  const Session session(plan);
  check_time(session.time(
      [&] { launch("spin", spin, {.blocks = 1, .threads = 32}, session.stream(), clock_ticks(spin_seconds)); }));
  plan.method.least_seconds = 0;
  plan.graph_calls = many;
  const Session graphs(plan);
  check_time(graphs.time_in_graph(
      [&] { launch("spin", spin, {.blocks = 1, .threads = 32}, graphs.stream(), clock_ticks(spin_seconds)); }));
}

TEST("what fails is told of, and the rest is measured") {
  Session session(rehearsal());
  session.attempt([] { throw std::runtime_error("a wrong result"); });
  session.attempt([&] { session.add({"right", 1, {}, {{"", {1, 1, 1}}}}); });
  session.add({"without trials", 1, {}, {}});
  CHECK_EQ(session.findings().figures.size(), 1u);
  CHECK_EQ(session.findings().failures.at(0), std::string("a wrong result"));
}

}  // namespace
}  // namespace ringred::cuda
