// The network over stream sockets that are connected already, one to each rank of another node.
//
// A message is a head (its tag and length) and its bytes. What comes for a tag is read where the first receive of that
// tag wants it, or kept until there is one. After a message the next waits for the next poll(), so that whoever was
// told by a head where the rest belongs can say so first: large messages are not copied.
//
// A stream that ends was left on purpose (leave() sends a farewell) or is a loss, which poll() reports once, by name.
#pragma once

#include <memory>
#include <vector>

#include "csrc/link/network.h"

namespace ringred {

// `sockets`: by rank, connected and non-blocking, -1 for those that are not to be reached. They stay the caller's, who
// closes them after the last call; destruction does not touch them.
std::unique_ptr<Network> make_socket_network(std::vector<int> sockets);

}  // namespace ringred
