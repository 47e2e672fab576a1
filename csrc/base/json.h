// Text of any bytes as a JSON string (RFC 8259). Names come from users and, in reports, from memory that may hold
// anything; what is not UTF-8 becomes U+FFFD.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ringred {

// How many bytes the UTF-8 letter at the front of `text` has, 0 where there is none: cut off, overlong, a surrogate, or
// beyond U+10FFFF (Unicode 15, table 3-7).
inline std::size_t letter_bytes(std::string_view text) {
  const auto at = [&](std::size_t place) { return static_cast<unsigned char>(text[place]); };
  if (text.empty()) return 0;
  if (at(0) < 0x80) return 1;
  if (at(0) < 0xc2 || at(0) > 0xf4) return 0;
  const std::size_t bytes = at(0) < 0xe0 ? 2 : at(0) < 0xf0 ? 3 : 4;
  if (text.size() < bytes) return 0;
  for (std::size_t i = 1; i < bytes; ++i)
    if ((at(i) & 0xc0) != 0x80) return 0;
  const bool overlong = (at(0) == 0xe0 && at(1) < 0xa0) || (at(0) == 0xf0 && at(1) < 0x90);
  const bool surrogate = at(0) == 0xed && at(1) > 0x9f, beyond = at(0) == 0xf4 && at(1) > 0x8f;
  return overlong || surrogate || beyond ? 0 : bytes;
}

inline constexpr std::string_view replacement_letter = "\xef\xbf\xbd";  // U+FFFD

inline void append_json_string(std::string& json, std::string_view text) {
  constexpr char digits[] = "0123456789abcdef";
  json += '"';
  while (!text.empty()) {
    const std::size_t bytes = letter_bytes(text);
    const auto first = static_cast<unsigned char>(text[0]);
    if (bytes == 0)
      json += replacement_letter;
    else if (first == '"' || first == '\\')
      (json += '\\') += text[0];
    else if (first < 0x20 || first == 0x7f)
      ((json += "\\u00") += digits[first >> 4]) += digits[first & 15];
    else
      json += text.substr(0, bytes);
    text.remove_prefix(bytes == 0 ? 1 : bytes);
  }
  json += '"';
}

// Appends `"key":`, then the value.
inline void append_json(std::string& json, std::string_view key, std::uint64_t value) {
  (((json += '"') += key) += "\":") += std::to_string(value);
}
inline void append_json(std::string& json, std::string_view key, std::string_view value) {
  ((json += '"') += key) += "\":";
  append_json_string(json, value);
}

}  // namespace ringred
