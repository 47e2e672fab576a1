#include "csrc/queue/autopsy/words.h"

#include <algorithm>
#include <cstdio>

#include "csrc/base/json.h"
#include "csrc/base/text.h"

namespace ringred {
namespace {

std::string clean(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const std::size_t bytes = letter_bytes(text);
    const auto first = static_cast<unsigned char>(text[0]);
    if (bytes == 0)
      result += replacement_letter;
    else if (first < 0x20 || first == 0x7f)
      result += ' ';
    else
      result += text.substr(0, bytes);
    text.remove_prefix(bytes == 0 ? 1 : bytes);
  }
  return result;
}

std::string numbers_text(const std::vector<int>& ranks) {
  constexpr std::size_t most_runs = 12;
  std::string text;
  std::size_t place = 0;
  for (std::size_t run = 0; run < most_runs && place < ranks.size(); ++run) {
    const std::size_t begin = place++;
    while (place < ranks.size() && ranks[place] == ranks[place - 1] + 1) ++place;
    text += (begin == 0 ? "" : ", ") + std::to_string(ranks[begin]);
    if (place - begin > 1) text += (place - begin > 2 ? "-" : ", ") + std::to_string(ranks[place - 1]);
  }
  return place == ranks.size() ? text : text + " and " + std::to_string(ranks.size() - place) + " more";
}

}  // namespace

std::string shortened(std::string_view text, std::size_t room) {
  const std::string whole = clean(text);
  return whole.size() <= room ? whole : std::string(cut(whole, room)) + "...";
}

std::string quoted(std::string_view name) {
  return "'" + shortened(name, 100) + "'";
}

std::vector<std::string> lines_of(std::string_view text, std::size_t room) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) lines.push_back(shortened(text.substr(0, end), room));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

std::string ranks_text(const std::vector<int>& ranks) {
  return (ranks.size() == 1 ? "rank " : "ranks ") + numbers_text(ranks);
}

std::string duration_text(std::uint64_t nanoseconds) {
  const double seconds = static_cast<double>(nanoseconds) * 1e-9;
  char text[48];
  const auto whole = static_cast<unsigned long long>(seconds);
  if (seconds < 10)
    std::snprintf(text, sizeof text, "%.1f s", seconds);
  else if (seconds < 120)
    std::snprintf(text, sizeof text, "%.0f s", seconds);
  else if (seconds < 7200)
    std::snprintf(text, sizeof text, "%llu min %llu s", whole / 60, whole % 60);
  else
    std::snprintf(text, sizeof text, "%llu h %llu min", whole / 3600, whole / 60 % 60);
  return text;
}

std::string set_text(std::uint32_t group) {
  return group == 0 ? "" : " of process set " + std::to_string(group);
}

}  // namespace ringred
