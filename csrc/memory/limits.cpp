#include "csrc/memory/limits.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>

#include "csrc/base/error.h"

namespace ringred {
namespace {

constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();

// The first number in a file; nothing where it says "max" or is missing.
std::optional<std::size_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::size_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

std::size_t available_in_meminfo(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  std::size_t kibibytes = 0;
  while (file >> word)
    if (word == "MemAvailable:" && file >> kibibytes) return kibibytes << 10;
  return unlimited;
}

// A container sees its own control group at the top. Both generations; file cache that could be dropped counts as used,
// which errs on the safe side of the killer.
std::size_t available_in_control_group(const std::string& root) {
  static constexpr std::array<std::array<const char*, 2>, 2> files{{
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
  }};
  for (const auto& [limit_file, usage_file] : files) {
    const auto limit = number_in(root + limit_file);
    const auto usage = number_in(root + usage_file);
    if (limit && usage) return *limit > *usage ? *limit - *usage : 0;
  }
  return unlimited;
}

}  // namespace

std::string in_words(std::size_t bytes) {
  static constexpr std::array<const char*, 5> units{"bytes", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < units.size(); ++unit) value /= 1024;
  char text[48];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

MemoryLimit memory_limit(const std::string& root) {
  MemoryLimit limit{available_in_meminfo(root + "/proc/meminfo"), "MemAvailable"};
  const std::size_t group = available_in_control_group(root);
  if (group < limit.available) limit = {group, "the container's memory limit"};
  return limit;
}

void check_memory_available(std::size_t bytes, const std::string& root) {
  const MemoryLimit limit = memory_limit(root);
  if (bytes <= limit.available) return;
  fail_system("The arena needs " + in_words(bytes) + " of shared memory, and " + limit.source + " leaves " +
              in_words(limit.available) +
              ". Use smaller arrays or fewer ranks on this node, free memory, or raise the container's limit.");
}

std::size_t file_size_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return unlimited;
  return static_cast<std::size_t>(limit.rlim_cur);
}

std::size_t machine_memory() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? static_cast<std::size_t>(pages) * static_cast<std::size_t>(page)
                               : std::size_t{1} << 36;
}

}  // namespace ringred
