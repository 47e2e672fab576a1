// Words for the screen: clean text, ranks, durations.
//
// Invariant: what comes from shared memory or a file is shown only as shortened() or quoted() have it: UTF-8, no
// control characters, one line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ringred {

std::string shortened(std::string_view text, std::size_t room);
std::string quoted(std::string_view name);

// Those that are not empty.
std::vector<std::string> lines_of(std::string_view text, std::size_t room);

// "ranks 0, 3-7 and 9 more": runs are folded.
std::string ranks_text(const std::vector<int>& ranks);

// "9.3 s", "31 s", "5 min 2 s", "3 h 7 min".
std::string duration_text(std::uint64_t nanoseconds);

// " of process set 3", or nothing for the world.
std::string set_text(std::uint32_t group);

}  // namespace ringred
