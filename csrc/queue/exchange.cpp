#include "csrc/queue/exchange.h"

#include <algorithm>
#include <vector>

#include "csrc/select/across_nodes.h"

namespace ringred {
namespace {

TypeClass class_of(const Run& run) {
  return info(run.wire).type_class;
}

bool all_nodes_give(const Batch& batch) {
  std::vector<bool> gives(static_cast<std::size_t>(batch.nodes->count()));
  for (const int giver : batch.givers) gives[static_cast<std::size_t>(batch.nodes->of(giver))] = true;
  return std::find(gives.begin(), gives.end(), false) == gives.end();
}

}  // namespace

bool adds_by_node(const Batch& batch, const Run& run) {
  const bool integer = class_of(run) == TypeClass::signed_integer || class_of(run) == TypeClass::unsigned_integer;
  return batch.nodes->several() && batch.way != Way::two_shot && (batch.op != Op::average || !integer);
}

// A schedule rounds after each step, and halves are to be added in fp32. A node that gives nothing would have to stand
// for the operator's neutral element.
std::optional<Algorithm> schedule_of(const Batch& batch, const Run& run) {
  const auto schedule = batch.way ? schedule_of(*batch.way) : std::nullopt;
  const bool possible = schedule && batch.columns != nullptr && adds_by_node(batch, run) &&
                        class_of(run) != TypeClass::half && all_nodes_give(batch);
  return possible ? schedule : std::nullopt;
}

Placement placement_of(const Nodes& nodes, const Settings& settings) {
  return {nodes.count(), nodes.columns(), settings.slot_bytes, settings.chunk_bytes, nodes.even()};
}

Exchange exchange_of(const Batch& batch, const Run& run) {
  if (!adds_by_node(batch, run)) return Exchange::unreduced;
  if (schedule_of(batch, run)) return Exchange::schedule;
  return may_send_sums(batch.nodes->count(), run.count * info(run.wire).size) ? Exchange::sums : Exchange::parts;
}

}  // namespace ringred
