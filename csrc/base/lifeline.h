// A lifeline is a descriptor that becomes readable when a peer's process ends; -1 where there is none.
#pragma once

#include <poll.h>

namespace ringred {

inline bool has_ended(int lifeline) {
  pollfd descriptor{lifeline, POLLIN, 0};
  return lifeline >= 0 && ::poll(&descriptor, 1, 0) > 0 && (descriptor.revents & (POLLIN | POLLHUP)) != 0;
}

}  // namespace ringred
