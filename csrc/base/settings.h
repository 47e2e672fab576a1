// Every RINGRED_* variable, in one table. The documentation of the settings is generated from it.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ringred {

struct SettingInfo {
  std::string_view name;
  std::string_view fallback;  // what holds when the variable is not set
  bool must_agree;            // ranks with different values could not work together
  std::string_view help;
};

std::span<const SettingInfo> setting_table();

struct Settings {
  double timeout_seconds;
  double stall_seconds;
  std::string algorithm;  // "auto" or the name of a way (csrc/select/way.h)
  std::string wait;       // "auto", "spin" or "yield"
  int spin_microseconds;
  std::string isa;
  std::size_t one_shot_bytes;
  bool one_shot_given;  // by hand: then it holds for all calls
  std::size_t slot_bytes;
  std::size_t chunk_bytes;
  std::size_t fusion_bytes;  // 0: no fusion
  std::size_t arena_bytes;   // 0: as large as the machine's memory
  bool huge_pages;
};

// How much a slot of one-shot takes. Where nothing is given, costs decide up to here: beyond it two shots were faster
// on every machine (docs/decisions/0009).
inline std::size_t one_shot_room(const Settings& settings) {
  constexpr std::size_t room = 256 << 10;
  return settings.one_shot_given ? settings.one_shot_bytes : room;
}

using Lookup = std::function<std::optional<std::string>(std::string_view name)>;

// Throws a usage error that names the variable, its value and the rule.
Settings read_settings(const Lookup& lookup);

// One `NAME=value` for each setting that ranks must agree on, in the order of the table.
std::vector<std::string> agreed_settings(const Lookup& lookup);

}  // namespace ringred
