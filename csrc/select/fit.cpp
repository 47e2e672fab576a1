#include "csrc/select/fit.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ringred {
namespace {

constexpr double lean = 1e-2;           // weight of `start`: a tenth of an error where samples leave a choice
constexpr int sweeps = 300;             // of the coordinates; they settle within some dozens
constexpr double least = 0.05;          // of a cost, as a multiple of where it started
constexpr double least_near = 1 << 20;  // smaller caches than a core's own are not looked for

using Row = std::array<double, cost_count>;

// The unknowns are multiples of the costs in `start`; a row's product with them is 1 where the price is the time.
std::vector<Row> rows_of(std::span<const Sample> samples, const Placement& placement, const Costs& start) {
  std::vector<Row> rows;
  for (const auto& [probe, seconds] : samples) {
    const Terms terms = terms_of(probe.way, static_cast<double>(probe.bytes), probe.arena, placement, start.near_bytes);
    Row& row = rows.emplace_back();
    for (std::size_t cost = 0; cost < cost_count; ++cost)
      row[cost] = terms.seconds[cost] * start.seconds[cost] / seconds;
  }
  return rows;
}

// The best value of one unknown while the others stay.
double settle(const std::vector<Row>& rows, const Row& unknowns, std::size_t cost) {
  double above = lean, below = lean;
  for (const Row& row : rows) {
    double rest = 1;
    for (std::size_t other = 0; other < cost_count; ++other)
      if (other != cost) rest -= row[other] * unknowns[other];
    above += row[cost] * rest;
    below += row[cost] * row[cost];
  }
  return std::max(above / below, least);
}

Costs fit_near(std::span<const Sample> samples, const Placement& placement, const Costs& start) {
  const std::vector<Row> rows = rows_of(samples, placement, start);
  Row unknowns;
  unknowns.fill(1);
  for (int sweep = 0; sweep < sweeps; ++sweep)
    for (std::size_t cost = 0; cost < cost_count; ++cost) unknowns[cost] = settle(rows, unknowns, cost);
  Costs costs = start;
  for (std::size_t cost = 0; cost < cost_count; ++cost) costs.seconds[cost] *= unknowns[cost];
  return costs;
}

}  // namespace

Costs fit(std::span<const Sample> samples, const Placement& placement, const Costs& start) {
  Costs best = fit_near(samples, placement, start);
  double touched = 0;
  for (const Sample& sample : samples)
    touched = std::max(touched, static_cast<double>(sample.probe.bytes) * placement.local);
  double least_error = error_of(best, samples, placement);
  for (double near = least_near; near <= touched / 8; near *= 2) {  // where the caches end is found by trial
    Costs from = start;
    from.near_bytes = near;
    const Costs costs = fit_near(samples, placement, from);
    const double error = error_of(costs, samples, placement);
    if (error < least_error) {
      least_error = error;
      best = costs;
    }
  }
  return best;
}

double error_of(const Costs& costs, std::span<const Sample> samples, const Placement& placement) {
  double squares = 0;
  for (const auto& [probe, seconds] : samples) {
    const double predicted = price(probe.way, static_cast<double>(probe.bytes), probe.arena, placement, costs);
    squares += std::pow(predicted / seconds - 1, 2);
  }
  return samples.empty() ? 0 : std::sqrt(squares / static_cast<double>(samples.size()));
}

}  // namespace ringred
