#include "csrc/base/settings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>

#include "csrc/base/error.h"
#include "csrc/base/round.h"

namespace ringred {
namespace {

constexpr auto table = std::to_array<SettingInfo>({
    {"RINGRED_TIMEOUT_SECONDS", "1800", true, "How long a rank waits for a peer before it raises; 0 waits for ever."},
    {"RINGRED_STALL_SECONDS", "30", false,
     "After how long a waiting rank reports on stderr whom it waits for; 0 never."},
    {"RINGRED_ALGORITHM", "auto", true,
     "Forces an allreduce: one_shot, two_shot, hierarchical, ring, double_tree, halving_doubling, recursive_doubling, "
     "circulant (across nodes by node and column); or auto (the fastest, as far as costs are known)."},
    {"RINGRED_TUNING", "", true, "A file of costs that 'ringred tune' wrote here, by which algorithms are chosen."},
    {"RINGRED_WAIT", "auto", false,
     "How to wait: spin (a core for each rank), yield (more ranks than cores), or auto (what the cores allow)."},
    {"RINGRED_SPIN_MICROSECONDS", "50", false,
     "How long a wait is short: the rank spins (or yields, if cores are few) and keeps the GIL."},
    {"RINGRED_ISA", "auto", false, "The instruction set of the reduce kernels: avx512, avx2, baseline or auto."},
    {"RINGRED_ONE_SHOT_BYTES", "16K", true,
     "The largest allreduce in one phase, through a slot of each rank. Unless set, synchronous calls go by costs."},
    {"RINGRED_SLOT_BYTES", "512K", true, "The staging slot of a private array; three for each rank."},
    {"RINGRED_CHUNK_BYTES", "64K", true, "The packet in which a schedule moves its chunks."},
    {"RINGRED_FUSION_THRESHOLD", "64M", true,
     "How many bytes of named operations that are alike (dtype, op, scale) travel as one at most; 0: each alone."},
    {"RINGRED_ARENA_BYTES", "0", false,
     "The address range of a rank's arena; 0: as much as the machine has memory. Pages are taken on allocation only."},
    {"RINGRED_HUGE_PAGES", "1", false, "Whether the arena asks for huge pages."},
    {"RINGRED_NODE", "", false, "A name for this rank's node, to set ranks of one machine apart by hand."},
    {"RINGRED_BOOTSTRAP", "auto", true,
     "How ranks meet: mpi, store (torchrun), single, or auto (what the launcher says)."},
    {"RINGRED_LINK", "auto", true, "What connects nodes: mpi, tcp, or auto (TCP on Ethernet, MPI on what is faster)."},
    {"RINGRED_OVERLAP", "auto", false,
     "Whether a DistributedOptimizer sends gradients during the backward pass: on, off, or auto (measured)."},
    {"RINGRED_GRADIENT_POOL", "on", false,
     "Whether autograd gets memory for large gradients from the arena, which saves a copy of each: on or off."},
    {"RINGRED_GPU", "staged", true,
     "How a DistributedOptimizer reduces gradients on GPUs: staged (through host memory), or direct (where they lie, "
     "on one node; has never run on a GPU so far)."},
    {"RINGRED_TIMELINE", "", false,
     "A file into which all ranks write a Chrome trace of their operations, from init() on; for ui.perfetto.dev."},
    {"RINGRED_FLIGHT_RECORDER", "", false,
     "A directory for a rank's last operations, as JSON, when an exception that nobody caught ends it."},
    {"RINGRED_LOG_LEVEL", "warning", false, "What ringred writes to stderr: debug, info, warning or error."},
});

std::string quoted(std::string_view name, const std::string& value) {
  return std::string(name) + "='" + value + "'";
}

class Reader {
 public:
  explicit Reader(const Lookup& lookup) : lookup_(lookup) {}

  std::string text(std::string_view name) const {
    const auto row =
        std::find_if(table.begin(), table.end(), [&](const SettingInfo& info) { return info.name == name; });
    return lookup_(name).value_or(std::string(row->fallback));
  }

  std::string choice(std::string_view name, std::initializer_list<std::string_view> allowed) const {
    const std::string value = text(name);
    std::string list;
    for (std::string_view one : allowed) {
      if (one == value) return value;
      list += (list.empty() ? "" : ", ") + std::string(one);
    }
    fail_usage(std::string(name) + " must be one of " + list + ": it is '" + value + "'.");
  }

  double seconds(std::string_view name) const {
    const std::string value = text(name);
    double result = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    if (error != std::errc() || end != value.data() + value.size() || !(result >= 0) || result > 1e9)
      fail_usage(std::string(name) + " must be a number of seconds from 0 to 1e9: " + quoted(name, value) + ".");
    return result;
  }

  std::size_t number(std::string_view name, std::size_t least, std::size_t most) const {
    const std::string value = text(name);
    std::size_t result = 0;
    const char* last = value.data() + value.size();
    const auto [end, error] = std::from_chars(value.data(), last, result);
    const bool shifted = error == std::errc() && end + 1 == last;
    const int shift = !shifted ? 0 : *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    const bool whole = error == std::errc() && (end == last || shift > 0) && result <= (most >> shift);
    if (!whole || (result << shift) < least)
      fail_usage(std::string(name) + " must be a whole number from " + std::to_string(least) + " to " +
                 std::to_string(most) + " (K, M and G count 1024s): " + quoted(name, value) + ".");
    return result << shift;
  }

 private:
  const Lookup& lookup_;
};

}  // namespace

std::span<const SettingInfo> setting_table() {
  return table;
}

Settings read_settings(const Lookup& lookup) {
  const Reader read(lookup);
  Settings settings;
  settings.timeout_seconds = read.seconds("RINGRED_TIMEOUT_SECONDS");
  settings.stall_seconds = read.seconds("RINGRED_STALL_SECONDS");
  settings.algorithm =
      read.choice("RINGRED_ALGORITHM", {"auto", "one_shot", "two_shot", "hierarchical", "ring", "double_tree",
                                        "halving_doubling", "recursive_doubling", "circulant"});
  settings.wait = read.choice("RINGRED_WAIT", {"auto", "spin", "yield"});
  settings.spin_microseconds = static_cast<int>(read.number("RINGRED_SPIN_MICROSECONDS", 0, 1000000));
  settings.isa = read.text("RINGRED_ISA");
  settings.one_shot_given = lookup("RINGRED_ONE_SHOT_BYTES").has_value();
  settings.one_shot_bytes = round_up(read.number("RINGRED_ONE_SHOT_BYTES", 64, std::size_t{1} << 24), 64);
  settings.slot_bytes = round_up(read.number("RINGRED_SLOT_BYTES", 1024, std::size_t{1} << 28), 64);
  settings.chunk_bytes = round_up(read.number("RINGRED_CHUNK_BYTES", 64, std::size_t{1} << 26), 64);
  settings.fusion_bytes = read.number("RINGRED_FUSION_THRESHOLD", 0, std::size_t{1} << 40);
  settings.arena_bytes = read.number("RINGRED_ARENA_BYTES", 0, std::size_t{1} << 46);
  settings.huge_pages = read.number("RINGRED_HUGE_PAGES", 0, 1) == 1;
  read.choice("RINGRED_BOOTSTRAP", {"auto", "mpi", "store", "single"});
  read.choice("RINGRED_LINK", {"auto", "mpi", "tcp"});
  read.choice("RINGRED_GPU", {"staged", "direct"});
  read.choice("RINGRED_LOG_LEVEL", {"debug", "info", "warning", "error"});
  return settings;
}

std::vector<std::string> agreed_settings(const Lookup& lookup) {
  const Reader read(lookup);
  std::vector<std::string> rows;
  for (const SettingInfo& row : table)
    if (row.must_agree) rows.push_back(std::string(row.name) + "=" + read.text(row.name));
  return rows;
}

}  // namespace ringred
