// One rank, examined: what its memory, its process and its Python stack say.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/queue/autopsy.h"

namespace ringred {

// Where the main thread stands, by its stack.
enum class Place { unknown, ringred, data_loader, mpi, sleep, elsewhere };

struct Patient {
  int rank = 0, pid = 0;
  bool visible = false, alive = true;
  bool asked = false, answered = false;  // for stacks, by this report
  char state = '?';                      // of /proc/<pid>/stat
  std::string last;                      // the operation that it completed last
  std::string waiting;                   // follows "it waits" or "ranks 0-2 wait": " for rank 3 in call 1, barrier()."
  std::vector<std::string> failure;      // a summary, then the traceback
  std::vector<std::string> frames;       // of the main thread, innermost first
  std::string source;                    // the innermost frame's line
  Place place = Place::unknown;
  std::uint64_t last_ended = 0, failed = 0, waiting_since = 0;  // CLOCK_MONOTONIC, nanoseconds; 0: not so
  std::optional<std::size_t> joined;                            // a process set
  std::vector<std::size_t> missing, submitted;                  // operations: places in the list of all

  bool ended() const { return !alive || state == 'Z' || state == 'X'; }
  bool stopped() const { return state == 'T' || state == 't'; }
};

// All but the operations.
Patient examine(const Scene& scene, int rank, const AutopsyOptions& options);

// "is alive, its main thread sleeps"
std::string state_text(const Patient& patient);

}  // namespace ringred
