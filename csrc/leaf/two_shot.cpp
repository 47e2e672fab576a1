#include "csrc/leaf/two_shot.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/round.h"

namespace ringred {
namespace {

std::byte* arena_buffer(const Team& team, int peer) {
  const std::uint64_t location = team.line(peer).location;
  return location == 0 ? nullptr : team.base(peer) + (location - 1);
}

// Every other call walks from the end to the beginning: what the call before touched last is then still in the cache.
// It follows from the call's number, so all ranks walk alike; the result does not depend on it.
std::size_t place_of(std::size_t step, std::size_t steps, const Team& team) {
  return team.number() % 2 == 0 ? step : steps - 1 - step;
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
        first_turn_(team.turn()),
        first_phase_(team.phase()) {}

  std::size_t chunks() const { return chunks_; }

  void copy_in(std::size_t chunk) {  // A
    if (reduction_.location != 0) return;
    for (int peer = 0; peer < team_.size(); ++peer)
      if (peer != team_.rank()) {
        const Part part = part_of(chunk, peer);
        std::memcpy(slot(chunk, team_.rank()) + part.in_slot, reduction_.input + part.in_buffer, part.bytes);
      }
  }

  void reduce(std::size_t chunk) {  // B
    const int rank = team_.rank();
    const Part part = part_of(chunk, rank);
    for (int peer = 0; peer < team_.size(); ++peer) {
      const std::byte* arena = arena_buffer(team_, peer);
      team_.inputs[static_cast<std::size_t>(peer)] = arena ? arena + part.in_buffer : slot(chunk, peer) + part.in_slot;
    }
    team_.inputs[static_cast<std::size_t>(rank)] = reduction_.input + part.in_buffer;
    void* output = reduction_.output + part.in_buffer;
    const std::size_t count = part.bytes / reduction_.element_size;
    reduction_.kernel(team_.inputs.data(), team_.size(), &output, 1, count, reduction_.divisor);
    // Into the slot by memcpy, not by the kernel: a peer's cache holds its lines, and block stores take them over
    // without waiting for each (docs/decisions/0004).
    std::memcpy(slot(chunk, rank) + part.in_slot, output, part.bytes);
  }

  void copy_out(std::size_t chunk) {  // C
    for (int step = 1; step < team_.size(); ++step) {
      const int peer = (team_.rank() + step) % team_.size();  // every rank begins with another peer's memory
      team_.await_phase(peer, first_phase_ + phase_of_reduce(chunk), sentence_);
      const Part part = part_of(chunk, peer);
      std::memcpy(reduction_.output + part.in_buffer, slot(chunk, peer) + part.in_slot, part.bytes);
    }
  }

  // A(0) is announced by the line; a rank's posts are A(1) B(0) A(2) B(1) ... A(last) B(last-1) B(last).
  void await_copies(std::size_t chunk) {
    if (chunk > 0) team_.await_phase_of_all(first_phase_ + 2 * chunk - 1, sentence_);
  }

 private:
  // The part of a chunk that one rank owns, in bytes: where it lies in a slot, and where in a buffer.
  struct Part {
    std::size_t in_slot, in_buffer, bytes;
  };

  // What a slot takes if every rank's slice is whole cache lines.
  static std::size_t whole_lines(const Team& team) {
    const std::size_t lines = 64 * static_cast<std::size_t>(team.size());
    return team.layout().slot_bytes / lines * lines;
  }

  std::size_t phase_of_reduce(std::size_t chunk) const { return chunk + 1 < chunks_ ? 2 * chunk + 2 : 2 * chunk + 1; }

  std::byte* slot(std::size_t chunk, int peer) const { return team_.staging_slot(peer, first_turn_ + chunk); }

  // The boundaries are the same in every chunk, cut off at the end of the buffer.
  Part part_of(std::size_t chunk, int owner) const {
    const std::size_t ranks = static_cast<std::size_t>(team_.size());
    const std::size_t slice = place_of(chunk, chunks_, team_) * ranks + static_cast<std::size_t>(owner);
    const std::size_t begin = std::min(slice * slice_elements_, reduction_.count);
    const std::size_t end = std::min(begin + slice_elements_, reduction_.count);
    const std::size_t element = reduction_.element_size;
    return {static_cast<std::size_t>(owner) * slice_elements_ * element, begin * element, (end - begin) * element};
  }

  Team& team_;
  const Reduction& reduction_;
  Sentence sentence_;
  const std::size_t chunks_, slice_elements_;
  const std::uint64_t first_turn_, first_phase_;
};

void direct(Team& team, const Reduction& reduction, Sentence sentence) {
  constexpr std::size_t block_bytes = 64 << 10;  // small beside a second-level cache, large beside a kernel call
  const std::size_t element = reduction.element_size, block = block_bytes / element;
  const Slice slice = slice_of(reduction.count, element, team.rank(), team.size());
  const std::size_t blocks = divide_up(slice.size(), block);
  for (std::size_t step = 0; step < blocks; ++step) {
    const std::size_t begin = slice.begin + place_of(step, blocks, team) * block;
    for (int peer = 0; peer < team.size(); ++peer) {
      std::byte* place = arena_buffer(team, peer) + begin * element;
      team.inputs[static_cast<std::size_t>(peer)] = place;
      team.outputs[static_cast<std::size_t>(peer)] = place;
    }
    const std::size_t count = std::min(block, slice.end - begin);
    reduction.kernel(team.inputs.data(), team.size(), team.outputs.data(), team.size(), count, reduction.divisor);
  }
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
  // Before the first foreign write, and after the last foreign read: whoever broke off may use its array again.
  team.waiter().throw_if_broken(sentence);
  bool all_in_arenas = true;
  for (int peer = 0; peer < team.size(); ++peer) all_in_arenas &= team.line(peer).location != 0;
  if (all_in_arenas)
    direct(team, reduction, sentence);
  else
    staged(team, reduction, sentence);
  team.waiter().throw_if_broken(sentence);
}

}  // namespace ringred
