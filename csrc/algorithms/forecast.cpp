#include "csrc/algorithms/forecast.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "csrc/base/error.h"

namespace ringred {
namespace {

// Steps that are played: of 36 bytes, and some 0.3 us each.
constexpr double most_steps = 3e7;

constexpr double piece_bytes = 64 << 10;  // RINGRED_CHUNK_BYTES and the deepest pipeline of csrc/engine/scheduled.cpp
constexpr double deepest_pipeline = 64;

bool power_of_two(int value) {
  return std::has_single_bit(static_cast<unsigned>(value));
}

int pipeline_chunks(const Job& job, double bytes) {
  if (job.pipeline_chunks > 0) return job.pipeline_chunks;
  const double pieces = std::clamp(bytes / piece_bytes, 2.0, deepest_pipeline);
  return static_cast<int>(std::bit_floor(static_cast<unsigned>(pieces)));
}

// Nodes that stand for all, if the algorithm is symmetric: those of a switch, or one if there is no core.
int unit_nodes(const Hardware& hardware) {
  return std::max(1, hardware.nodes_per_switch);
}

// `power`: the ranks that the algorithm pairs by exclusive or are a power of two, and so are those of a unit.
Symmetry symmetry_of(Algorithm algorithm, const Job& job, const Hardware& hardware, bool power) {
  if (job.nodes % unit_nodes(hardware) != 0) return Symmetry::none;
  switch (algorithm) {
    case Algorithm::ring:
    case Algorithm::circulant:
      return Symmetry::shift;
    case Algorithm::halving_doubling:
    case Algorithm::recursive_doubling:
      return power && power_of_two(job.nodes) && power_of_two(unit_nodes(hardware)) ? Symmetry::exclusive_or
                                                                                    : Symmetry::none;
    case Algorithm::double_tree:
      return Symmetry::none;
  }
  return Symmetry::none;
}

// Rank 0 has as many steps as any.
void check_steps(const Outline& outline, const Job& job, const Hardware& hardware, int played) {
  double steps = 0;
  for (const OutlineLane& lane : outline.ranks.front()) steps += static_cast<double>(lane.steps.size());
  if (steps * played <= most_steps) return;
  fail_usage("A simulation plays at most " + std::to_string(static_cast<long>(most_steps)) +
             " steps: " + std::to_string(played) + " ranks of " + std::to_string(static_cast<long>(steps)) +
             " steps are too many. " + "The ranks of one switch stand for all where the number of nodes (" +
             std::to_string(job.nodes) + ") is a multiple of the nodes per switch (" +
             std::to_string(unit_nodes(hardware)) + ").");
}

// `record(rank)` gives a rank's lanes.
template <class Record>
Outline outline_ranks(Symmetry symmetry, const Job& job, const Hardware& hardware, int chunks, Record&& record) {
  const int size = job.nodes * hardware.local;
  const int played = symmetry == Symmetry::none ? size : unit_nodes(hardware) * hardware.local;
  Outline outline{size, chunks, symmetry, {}};
  for (int rank = 0; rank < played; ++rank) {
    outline.ranks.push_back(outline_of(record(rank)));
    if (rank == 0) check_steps(outline, job, hardware, played);
  }
  return outline;
}

void check(const Job& job, const Hardware& hardware) {
  const auto fine = [](double value) { return std::isfinite(value) && value >= 0; };
  if (job.nodes < 1 || hardware.local < 1 || hardware.local > largest_forecast_local ||
      static_cast<long>(job.nodes) * hardware.local > largest_forecast_size)
    fail_usage("A forecast is for 1 to " + std::to_string(largest_forecast_size) + " ranks, at most " +
               std::to_string(largest_forecast_local) + " of them on a node: got " + std::to_string(job.nodes) +
               " nodes of " + std::to_string(hardware.local) + ".");
  if (job.pipeline_chunks < 0 || job.pipeline_chunks > 1024)
    fail_usage("A pipeline holds 1 to 1024 chunks, or 0 to let the size decide: got " +
               std::to_string(job.pipeline_chunks) + ".");
  if (hardware.nodes_per_switch < 0)
    fail_usage("A switch has 1 or more nodes, or 0 where one has them all: got " +
               std::to_string(hardware.nodes_per_switch) + ".");
  if (hardware.uplinks < 1) fail_usage("A switch has 1 or more uplinks: got " + std::to_string(hardware.uplinks) + ".");
  for (double value : {job.bytes, hardware.memory.alpha, hardware.memory.beta, hardware.card.alpha, hardware.card.beta,
                       hardware.core.alpha, hardware.core.beta, hardware.gamma, hardware.step})
    if (!fine(value)) fail_usage("A cost or a size is a finite number, 0 or above: got " + std::to_string(value) + ".");
}

Forecast played(const Outline& outline, const Job& job, const Hardware& hardware) {
  return {{}, static_cast<int>(outline.ranks.size()), simulate(outline, job.bytes, hardware)};
}

Forecast best_two_level(const Job& job, const Hardware& hardware) {
  Forecast best;
  for (const AlgorithmInfo& row : algorithm_table) {
    Forecast one = played(outline_two_level(row.algorithm, job, hardware), job, hardware);
    one.across = row.name;
    if (best.across.empty() || one.simulated.seconds < best.simulated.seconds) best = std::move(one);
  }
  return best;
}

}  // namespace

Outline outline_flat(Algorithm algorithm, const Job& job, const Hardware& hardware, bool in_full) {
  const int size = job.nodes * hardware.local, depth = pipeline_chunks(job, job.bytes);
  const Symmetry symmetry =
      in_full ? Symmetry::none : symmetry_of(algorithm, job, hardware, power_of_two(hardware.local));
  return outline_ranks(symmetry, job, hardware, chunk_count(algorithm, size, depth),
                       [&](int rank) { return record_rank(algorithm, rank, size, depth); });
}

Outline outline_two_level(Algorithm across, const Job& job, const Hardware& hardware, bool in_full) {
  const int local = hardware.local, size = job.nodes * local, depth = pipeline_chunks(job, job.bytes / local);
  const Symmetry symmetry = in_full ? Symmetry::none : symmetry_of(across, job, hardware, true);
  return outline_ranks(symmetry, job, hardware, two_level_chunk_count(size, local, across, depth),
                       [&](int rank) { return record_two_level_rank(rank, size, local, across, depth); });
}

Forecast forecast(std::string_view name, const Job& job, const Hardware& hardware) {
  check(job, hardware);
  if (name == hierarchical_name) return best_two_level(job, hardware);
  const std::optional<Algorithm> algorithm = algorithm_named(name);
  if (!algorithm)
    fail_usage("The algorithm must be hierarchical or one of the table's (ringred draw lists them): it is '" +
               std::string(name) + "'.");
  return played(outline_flat(*algorithm, job, hardware), job, hardware);
}

}  // namespace ringred
