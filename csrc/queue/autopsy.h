// What a stalled job waits for, on one screen: which operations are pending, who has not submitted them, what these
// ranks do instead, and the likely cause in words.
//
// Invariant: it only reads the ranks' shared memory (and /proc), takes no lock and trusts nothing that it reads: every
// index, offset and length is checked, and text may be a mixture of old and new. So any process that has mapped the
// segments can do it, while the ranks run on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "csrc/queue/shared.h"

namespace ringred {

// The ranks of a job as one process sees them. The index is the rank.
struct Scene {
  std::vector<const RankBlock*> ranks;  // null where not visible: on another node
  std::vector<const std::byte*> bases;  // of the segments in which they lie
  std::vector<std::size_t> lengths;     // of these, in bytes
  std::function<bool(int rank)> alive;  // unset: they are
};

// An operation that some member has submitted and not completed. Ranks are of the world, in ascending order; each
// member is in one of the five lists.
struct PendingOperation {
  std::uint32_t group = 0;  // the process set's number
  std::array<std::uint64_t, 2> hash{};
  std::string name, what;   // as they stand in memory, of any bytes
  std::uint64_t since = 0;  // CLOCK_MONOTONIC, nanoseconds: when a member submitted it first
  std::vector<int> submitted, missing, joined;
  std::vector<int> finished;  // all have submitted it, and these have done their part
  std::vector<int> unseen;    // not visible from here
  std::vector<int> awaiting;  // of those who submitted it: a thread sleeps until it is over
};

// The oldest first.
std::vector<PendingOperation> pending(const Scene& scene);

struct AutopsyOptions {
  std::uint64_t now = 0;  // CLOCK_MONOTONIC, nanoseconds; 0: the clock's
  // What request_stacks() has returned for each rank; 0, or none: it was not asked. A stack is shown only if it answers
  // this request: what else stands there is of an earlier report.
  std::vector<std::uint32_t> requests = {};
  bool source_lines = true;  // look up the innermost frame's line in its file: tells MPI calls and sleeps
};

// Ends with a newline.
std::string autopsy(const Scene& scene, const AutopsyOptions& options = {});

// Asks a rank for its Python stacks; its bell is still to be rung. Returns the request's number.
std::uint32_t request_stacks(RankBlock& target);

// Whether RankBlock::stacks answers this request or a later one.
bool answered(const RankBlock& target, std::uint32_t number);

}  // namespace ringred
