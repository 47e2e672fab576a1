#include "csrc/engine/scheduled.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <string>

namespace ringred {
namespace {

// The depth of a pipeline for which the steps of the player cost little beside the data.
constexpr std::size_t deepest_pipeline = 64;

std::vector<std::byte*> places_of(const Team& team, std::size_t offset) {
  std::vector<std::byte*> places;
  for (int peer = 0; peer < team.size(); ++peer) places.push_back(team.base(peer) + offset);
  return places;
}

}  // namespace

Scheduled::Scheduled(Team& team, Segment& own, std::size_t offset, std::size_t slot_bytes, const InstructionSet& set)
    : team_(team),
      own_(own),
      offset_(offset),
      set_(set),
      links_(team.rank(), places_of(team, offset), slot_bytes, team.waiter()) {}

void Scheduled::allreduce(Algorithm algorithm, const Call& call, const Reduction& reduction, Sentence sentence) {
  if (reduction.count == 0) return;
  const DType partial = partial_dtype(call.dtype, call.op);
  const bool converts = partial != call.dtype;
  std::byte* data = converts ? workspace(reduction.count * info(partial).size) : reduction.output;
  if (converts)
    convert_kernel(set_, call.dtype, partial)(reduction.input, data, reduction.count);
  else if (reduction.input != reduction.output)
    std::memmove(data, reduction.input, reduction.bytes());

  const Op combining = call.op == Op::average ? Op::sum : call.op;
  play(algorithm, {data, info(partial).size, reduction.count, reduce_kernel(set_, partial, combining)}, sentence);

  if (call.op == Op::average) {
    const void* sums = data;
    void* averages = data;
    reduce_kernel(set_, partial, Op::average)(&sums, 1, &averages, 1, reduction.count, team_.size());
  }
  if (converts) convert_kernel(set_, partial, call.dtype)(data, reduction.output, reduction.count);
}

void Scheduled::play(Algorithm algorithm, const Work& work, Sentence sentence) {
  Player<SegmentLinks>& player = player_for(algorithm, work.count * work.element_size);
  player.start(work);
  while (!player.advance()) {
    bool moved = player.moved();  // stays true once it is: the wait looks more than once
    if (!moved)
      team_.waiter().until(
          player.waiting_peer(), [&] { return moved = moved || player.advance() || player.moved(); },
          [&] { return sentence() + ", where " + player.waiting_for(); });
  }
}

// A pipeline as deep as there are slots to fill, in powers of two so that few schedules are recorded.
Player<SegmentLinks>& Scheduled::player_for(Algorithm algorithm, std::size_t bytes) {
  const std::size_t slots = std::clamp<std::size_t>(bytes / links_.slot_bytes(), 2, deepest_pipeline);
  const int depth = algorithm == Algorithm::double_tree ? static_cast<int>(std::bit_floor(slots)) : 1;
  const auto found = players_.find({algorithm, depth});
  if (found != players_.end()) return found->second;
  const int chunks = chunk_count(algorithm, team_.size(), depth);
  auto lanes = record_rank(algorithm, team_.rank(), team_.size(), depth);
  commit_sending_ends(lanes);
  return players_.try_emplace({algorithm, depth}, links_, team_.rank(), chunks, std::move(lanes)).first->second;
}

// The FIFOs that a rank's lanes write to are the pages that it has to commit, before it writes.
void Scheduled::commit_sending_ends(const std::vector<Lane>& lanes) {
  const std::size_t bytes = Fifo::memory_bytes(SegmentLinks::slots, links_.slot_bytes());
  std::set<std::pair<int, std::size_t>> used;
  for (std::size_t lane = 0; lane < lanes.size(); ++lane)
    for (const Step& step : lanes[lane])
      if (step.to >= 0) used.emplace(step.to, lane);
  for (const auto& [peer, lane] : used) {
    const std::size_t begin = offset_ + (static_cast<std::size_t>(peer * SegmentLinks::lanes) + lane) * bytes;
    const std::size_t first = begin / Layout::page * Layout::page;
    own_.commit(first, Layout::round_up(begin + bytes) - first);
  }
}

std::byte* Scheduled::workspace(std::size_t bytes) {
  if (workspace_.size() < bytes) workspace_.resize(bytes);
  return workspace_.data();
}

}  // namespace ringred
