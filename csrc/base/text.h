// Text for errors; and into a fixed room in shared memory, cut where it is too long, never inside a UTF-8 letter.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace ringred {

// The longest beginning of `text` of at most `room` bytes that ends with a whole letter.
inline std::string_view cut(std::string_view text, std::size_t room) {
  if (text.size() <= room) return text;
  while (room > 0 && (static_cast<unsigned char>(text[room]) & 0xc0) == 0x80) --room;
  return text.substr(0, room);
}

inline void store_text(char* place, std::size_t size, std::string_view text) {
  place[cut(text, size - 1).copy(place, size)] = '\0';
}

template <std::size_t size>
void store_text(char (&place)[size], std::string_view text) {
  store_text(place, size, text);
}

// "0.5", "1800"
inline std::string in_seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", seconds);
  return text;
}

// "rank 2", "ranks 0, 1, 3": all of them, since errors name everyone.
inline std::string list_ranks(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  return text;
}

}  // namespace ringred
