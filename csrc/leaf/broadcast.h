// Broadcast inside a node: the root's data is read where it lies, by all others.
//
// small:  in the root's line or one-shot slot, one phase.
// direct: the root's buffer lies in its arena; the others copy from there. A closing phase tells the root when it may
//         change the buffer.
// staged: the root copies chunk by chunk into its slots, three in turn; chunk c waits until all have read chunk c-3.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/leaf/reduction.h"
#include "csrc/leaf/team.h"

namespace ringred {

struct Broadcast {
  int root;
  std::byte* data;
  std::size_t bytes;
  std::uint64_t location;
  std::uint64_t fingerprint;
};

// The two halves of the call; in between the caller waits for the lines and compares the fingerprints.
void broadcast_publish(Team& team, const Broadcast& broadcast);
void broadcast_complete(Team& team, const Broadcast& broadcast, Sentence sentence);

}  // namespace ringred
