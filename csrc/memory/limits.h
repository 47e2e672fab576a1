// How much memory this process may still take: the machine's, the container's, the process's own limit.
#pragma once

#include <cstddef>
#include <string>

namespace ringred {

// "3.0 GiB"
std::string in_words(std::size_t bytes);

struct MemoryLimit {
  std::size_t available;
  std::string source;  // which limit is the tightest
};

// `root` is where /proc and /sys are found; tests put their own there.
MemoryLimit memory_limit(const std::string& root = "");

// Throws a system error that says need, have and remedy. Too large a memfd is no error by itself: it ends in the
// out-of-memory killer.
void check_memory_available(std::size_t bytes, const std::string& root = "");

// The largest file that this process may make (RLIMIT_FSIZE counts for a memfd), and the machine's memory.
std::size_t file_size_limit();
std::size_t machine_memory();

}  // namespace ringred
