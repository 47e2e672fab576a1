// Text into a fixed room in shared memory, cut where it is too long, never inside a UTF-8 letter.
#pragma once

#include <cstddef>
#include <string_view>

namespace ringred {

// The longest beginning of `text` of at most `room` bytes that ends with a whole letter.
inline std::string_view cut(std::string_view text, std::size_t room) {
  if (text.size() <= room) return text;
  while (room > 0 && (static_cast<unsigned char>(text[room]) & 0xc0) == 0x80) --room;
  return text.substr(0, room);
}

template <std::size_t size>
void store_text(char (&place)[size], std::string_view text) {
  place[cut(text, size - 1).copy(place, size)] = '\0';
}

}  // namespace ringred
