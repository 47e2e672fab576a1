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

// The FIFOs that a rank's lanes write to are the pages that it has to commit.
void commit_sending_ends(Segment& own, std::size_t offset, const std::vector<Lane>& lanes, std::size_t slot_bytes) {
  const std::size_t bytes = Fifo::memory_bytes(SegmentLinks::slots, slot_bytes);
  std::set<std::pair<int, std::size_t>> used;
  for (std::size_t lane = 0; lane < lanes.size(); ++lane)
    for (const Step& step : lanes[lane])
      if (step.to >= 0) used.emplace(step.to, lane);
  for (const auto& [peer, lane] : used) {
    const std::size_t begin = offset + (static_cast<std::size_t>(peer * SegmentLinks::lanes) + lane) * bytes;
    const std::size_t first = begin / Layout::page * Layout::page;
    own.commit(first, Layout::round_up(begin + bytes) - first);
  }
}

}  // namespace

std::optional<Scheduled> Scheduled::if_forced(Team& team, Segment& own, std::size_t offset, const Settings& settings,
                                              const InstructionSet& set) {
  const std::optional<Algorithm> algorithm = algorithm_named(settings.algorithm);
  if (!algorithm || team.size() == 1) return std::nullopt;
  commit_sending_ends(own, offset, record_rank(*algorithm, team.rank(), team.size(), 2), settings.chunk_bytes);
  std::vector<std::byte*> places;
  for (int peer = 0; peer < team.size(); ++peer) places.push_back(team.base(peer) + offset);
  return Scheduled(team, std::move(places), *algorithm, settings.chunk_bytes, set);
}

Scheduled::Scheduled(Team& team, std::vector<std::byte*> places, Algorithm algorithm, std::size_t slot_bytes,
                     const InstructionSet& set)
    : team_(&team),
      algorithm_(algorithm),
      set_(&set),
      links_(std::make_unique<SegmentLinks>(team.rank(), places, slot_bytes, team.waiter())) {}

void Scheduled::allreduce(const Call& call, const Reduction& reduction, Sentence sentence) {
  if (reduction.count == 0) return;
  const DType partial = partial_dtype(call.dtype, call.op);
  const bool converts = partial != call.dtype;
  std::byte* data = converts ? workspace(reduction.count * info(partial).size) : reduction.output;
  if (converts)
    convert_kernel(*set_, call.dtype, partial)(reduction.input, data, reduction.count);
  else if (reduction.input != reduction.output)
    std::memmove(data, reduction.input, reduction.bytes());

  const Op combining = call.op == Op::average ? Op::sum : call.op;
  play({data, info(partial).size, reduction.count, reduce_kernel(*set_, partial, combining)}, sentence);

  if (call.op == Op::average) {
    const void* sums = data;
    void* averages = data;
    reduce_kernel(*set_, partial, Op::average)(&sums, 1, &averages, 1, reduction.count, team_->size());
  }
  if (converts) convert_kernel(*set_, partial, call.dtype)(data, reduction.output, reduction.count);
}

void Scheduled::play(const Work& work, Sentence sentence) {
  Player<SegmentLinks>& player = player_for(work.count * work.element_size);
  player.start(work);
  while (!player.advance()) {
    bool moved = player.moved();  // stays true once it is: the wait looks more than once
    if (!moved)
      team_->waiter().until(
          player.waiting_peer(), [&] { return moved = moved || player.advance() || player.moved(); },
          [&] { return sentence() + ", where " + player.waiting_for(); });
  }
}

// A pipeline as deep as there are slots to fill, in powers of two so that few schedules are recorded.
Player<SegmentLinks>& Scheduled::player_for(std::size_t bytes) {
  const std::size_t slots = std::clamp<std::size_t>(bytes / links_->slot_bytes(), 2, deepest_pipeline);
  const int depth = algorithm_ == Algorithm::double_tree ? static_cast<int>(std::bit_floor(slots)) : 1;
  const auto found = players_.find(depth);
  if (found != players_.end()) return found->second;
  const int chunks = chunk_count(algorithm_, team_->size(), depth);
  auto lanes = record_rank(algorithm_, team_->rank(), team_->size(), depth);
  return players_.try_emplace(depth, *links_, team_->rank(), chunks, std::move(lanes)).first->second;
}

std::byte* Scheduled::workspace(std::size_t bytes) {
  if (workspace_.size() < bytes) workspace_.resize(bytes);
  return workspace_.data();
}

}  // namespace ringred
