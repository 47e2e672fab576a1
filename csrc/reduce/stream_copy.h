// A copy of what will not be read soon by who copies it.
#pragma once

#include <cstddef>

namespace ringred {

// Copies `bytes` from `data` to `place`, which do not overlap. Many bytes go past the caches: then the place's old
// contents are not read first, which they are otherwise, a third of the traffic. All stores are done on return, in the
// sense that a later release makes them visible.
void stream_copy(std::byte* place, const std::byte* data, std::size_t bytes);

}  // namespace ringred
