#include "csrc/leaf/one_shot.h"

#include <cstring>

namespace ringred {

void one_shot_publish(Team& team, const Reduction& reduction) {
  const std::size_t bytes = reduction.bytes();
  std::byte* payload = bytes <= Line::inline_bytes ? team.my_line().payload : team.one_shot_slot(team.rank());
  if (bytes > 0) std::memcpy(payload, reduction.input, bytes);
  team.announce(reduction.fingerprint, reduction.location);
}

void one_shot_combine(Team& team, const Reduction& reduction) {
  if (reduction.count == 0) return;
  const bool in_line = reduction.bytes() <= Line::inline_bytes;
  for (int peer = 0; peer < team.size(); ++peer)
    team.inputs[static_cast<std::size_t>(peer)] = in_line ? team.line(peer).payload : team.one_shot_slot(peer);
  team.inputs[static_cast<std::size_t>(team.rank())] = reduction.input;
  void* output = reduction.output;
  reduction.kernel(team.inputs.data(), team.size(), &output, 1, reduction.count, reduction.divisor);
}

}  // namespace ringred
