#include "csrc/leaf/broadcast.h"

#include <algorithm>
#include <cstring>

namespace ringred {
namespace {

void direct(Team& team, const Broadcast& broadcast, Sentence sentence) {
  const std::byte* source = team.base(broadcast.root) + (team.line(broadcast.root).location - 1);
  if (team.rank() != broadcast.root) std::memcpy(broadcast.data, source, broadcast.bytes);
  team.post();
  if (team.rank() == broadcast.root) team.await_phase_of_all(team.phase(), sentence);
}

// Every rank posts one phase for each chunk: the root when the chunk is in its slot, the others when they have read it.
void staged(Team& team, const Broadcast& broadcast, Sentence sentence) {
  const std::size_t slot_bytes = team.layout().slot_bytes;
  const std::size_t chunks = (broadcast.bytes + slot_bytes - 1) / slot_bytes;
  const bool is_root = team.rank() == broadcast.root;
  for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
    std::byte* slot = team.staging_slot(broadcast.root, team.turn());
    std::byte* data = broadcast.data + chunk * slot_bytes;
    const std::size_t bytes = std::min(slot_bytes, broadcast.bytes - chunk * slot_bytes);
    if (is_root) {
      if (chunk >= Layout::slots) team.await_phase_of_all(team.phase() + 1 - Layout::slots, sentence);
      std::memcpy(slot, data, bytes);
    } else {
      team.await_phase(broadcast.root, team.phase() + 1, sentence);
      std::memcpy(data, slot, bytes);
    }
    team.post();
    team.use_turns(1);
  }
  if (is_root) team.await_phase_of_all(team.phase(), sentence);
}

}  // namespace

void broadcast_publish(Team& team, const Broadcast& broadcast) {
  if (team.rank() == broadcast.root && broadcast.bytes > 0) {
    if (broadcast.bytes <= Line::inline_bytes)
      std::memcpy(team.my_line().payload, broadcast.data, broadcast.bytes);
    else if (broadcast.bytes <= team.layout().small_bytes)
      std::memcpy(team.one_shot_slot(team.rank()), broadcast.data, broadcast.bytes);
  }
  team.announce(broadcast.fingerprint, broadcast.location);
}

void broadcast_complete(Team& team, const Broadcast& broadcast, Sentence sentence) {
  const bool small = broadcast.bytes <= team.layout().small_bytes;
  if (!small) {
    if (team.line(broadcast.root).location != 0)
      direct(team, broadcast, sentence);
    else
      staged(team, broadcast, sentence);
    team.waiter().throw_if_broken(sentence);  // a root that broke off may have changed its array before it was read
  } else if (team.rank() != broadcast.root && broadcast.bytes > 0) {
    const bool in_line = broadcast.bytes <= Line::inline_bytes;
    const std::byte* source = in_line ? team.line(broadcast.root).payload : team.one_shot_slot(broadcast.root);
    std::memcpy(broadcast.data, source, broadcast.bytes);
  }
}

}  // namespace ringred
