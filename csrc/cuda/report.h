// What a rank's kernel leaves behind when it waited too long: who, for whom, for what. The host reads it when the
// stream has come past the kernel.
//
// Invariant: the first thread of the rank that gives up writes the report; all others of the rank see that it is taken
// and end without one. Zeroed memory is no report. It lies in memory that the host can read, pinned and mapped. The
// host of any rank may raise it, too, for the rank's kernels to end; what is raised stays so.
#pragma once

#include <cstdint>
#include <string>

namespace ringred::cuda {

enum class Awaited : std::int32_t { nothing, message, free_slot, lane, packet, start, end };

struct Report {
  static constexpr std::uint64_t being_written = 1, there = 2, raised_by_host = 3;

  std::uint64_t taken;  // 0: no report; or one of these
  Awaited awaited;
  std::int32_t rank;
  std::int32_t peer;    // that is waited for; of Awaited::lane the lane
  std::int32_t lane;    // -1: a leaf
  std::int32_t stripe;  // of a leaf the block
  std::int32_t move;    // of the lane
  std::uint64_t expected;
  std::uint64_t seen;
};

// Empty where there is no report of a kernel.
std::string describe(const Report& report);

}  // namespace ringred::cuda
