#include "csrc/leaf/two_shot.h"

#include <algorithm>
#include <cstring>

namespace ringred {
namespace {

std::byte* arena_buffer(const Team& team, int peer) {
  const std::uint64_t location = team.line(peer).location;
  return location == 0 ? nullptr : team.base(peer) + (location - 1);
}

// The chunks of one staged call: as many as slots are needed, and of the same size but for the last.
class Stages {
 public:
  Stages(Team& team, const Reduction& reduction, Sentence sentence)
      : team_(team),
        reduction_(reduction),
        sentence_(sentence),
        chunks_(divide_up(reduction.count, whole_lines(team) / reduction.element_size)),
        slice_elements_(slice_of(divide_up(reduction.count, chunks_), reduction.element_size, 0, team.size()).size()),
        chunk_elements_(slice_elements_ * static_cast<std::size_t>(team.size())),
        first_turn_(team.turn()),
        first_phase_(team.phase()) {}

  std::size_t chunks() const { return chunks_; }

  void copy_in(std::size_t chunk) {  // A
    if (reduction_.location != 0) return;
    std::byte* slot = team_.staging_slot(team_.rank(), first_turn_ + chunk);
    for (int peer = 0; peer < team_.size(); ++peer)
      if (peer != team_.rank())
        copy(slot + offset(chunk, peer), reduction_.input + start(chunk) + offset(chunk, peer), chunk, peer);
  }

  void reduce(std::size_t chunk) {  // B
    const int rank = team_.rank();
    const std::size_t skip = offset(chunk, rank);
    for (int peer = 0; peer < team_.size(); ++peer) {
      const std::byte* arena = peer == rank ? reduction_.input : arena_buffer(team_, peer);
      const std::byte* source = arena ? arena + start(chunk) : team_.staging_slot(peer, first_turn_ + chunk);
      team_.inputs[static_cast<std::size_t>(peer)] = source + skip;
    }
    void* outputs[] = {team_.staging_slot(rank, first_turn_ + chunk) + skip, reduction_.output + start(chunk) + skip};
    reduction_.kernel(team_.inputs.data(), team_.size(), outputs, 2, slice(chunk, rank).size(), reduction_.divisor);
  }

  void copy_out(std::size_t chunk) {  // C
    for (int step = 1; step < team_.size(); ++step) {
      const int peer = (team_.rank() + step) % team_.size();  // every rank begins with another peer's memory
      team_.await_phase(peer, first_phase_ + phase_of_reduce(chunk), sentence_);
      copy(reduction_.output + start(chunk) + offset(chunk, peer),
           team_.staging_slot(peer, first_turn_ + chunk) + offset(chunk, peer), chunk, peer);
    }
  }

  // A(0) is announced by the line; a rank's posts are A(1) B(0) A(2) B(1) ... A(last) B(last-1) B(last).
  void await_copies(std::size_t chunk) {
    if (chunk > 0) team_.await_phase_of_all(first_phase_ + 2 * chunk - 1, sentence_);
  }
  std::size_t phase_of_reduce(std::size_t chunk) const { return chunk + 1 < chunks_ ? 2 * chunk + 2 : 2 * chunk + 1; }

 private:
  static std::size_t divide_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit; }

  // What a slot takes if every rank's slice is whole cache lines.
  static std::size_t whole_lines(const Team& team) {
    const std::size_t lines = 64 * static_cast<std::size_t>(team.size());
    return team.layout().slot_bytes / lines * lines;
  }

  std::size_t start(std::size_t chunk) const { return chunk * chunk_elements_ * reduction_.element_size; }
  // The same boundaries in every chunk, cut off at the end.
  Slice slice(std::size_t chunk, int peer) const {
    const std::size_t first = chunk * chunk_elements_;
    const std::size_t count = first < reduction_.count ? reduction_.count - first : 0;
    const std::size_t begin = static_cast<std::size_t>(peer) * slice_elements_;
    return {std::min(begin, count), std::min(begin + slice_elements_, count)};
  }
  std::size_t offset(std::size_t chunk, int peer) const { return slice(chunk, peer).begin * reduction_.element_size; }
  void copy(std::byte* to, const std::byte* from, std::size_t chunk, int peer) const {
    std::memcpy(to, from, slice(chunk, peer).size() * reduction_.element_size);
  }

  Team& team_;
  const Reduction& reduction_;
  Sentence sentence_;
  const std::size_t chunks_, slice_elements_, chunk_elements_;
  const std::uint64_t first_turn_, first_phase_;
};

void direct(Team& team, const Reduction& reduction, Sentence sentence) {
  const Slice slice = slice_of(reduction.count, reduction.element_size, team.rank(), team.size());
  for (int peer = 0; peer < team.size(); ++peer) {
    std::byte* place = arena_buffer(team, peer) + slice.begin * reduction.element_size;
    team.inputs[static_cast<std::size_t>(peer)] = place;
    team.outputs[static_cast<std::size_t>(peer)] = place;
  }
  reduction.kernel(team.inputs.data(), team.size(), team.outputs.data(), team.size(), slice.size(), reduction.divisor);
  team.post();
  team.await_phase_of_all(team.phase(), sentence);
}

void staged(Team& team, const Reduction& reduction, Sentence sentence) {
  Stages stages(team, reduction, sentence);
  for (std::size_t chunk = 0; chunk < stages.chunks(); ++chunk) {
    if (chunk + 1 < stages.chunks()) {
      stages.copy_in(chunk + 1);
      team.post();
    }
    stages.await_copies(chunk);
    stages.reduce(chunk);
    team.post();
    if (chunk > 0) stages.copy_out(chunk - 1);
  }
  stages.copy_out(stages.chunks() - 1);
  team.use_turns(stages.chunks());
}

}  // namespace

void two_shot_publish(Team& team, const Reduction& reduction) {
  Stages(team, reduction, [] { return std::string(); }).copy_in(0);
  team.announce(reduction.fingerprint, reduction.location);
}

void two_shot_complete(Team& team, const Reduction& reduction, Sentence sentence) {
  bool all_in_arenas = true;
  for (int peer = 0; peer < team.size(); ++peer) all_in_arenas &= team.line(peer).location != 0;
  if (all_in_arenas)
    direct(team, reduction, sentence);
  else
    staged(team, reduction, sentence);
}

}  // namespace ringred
