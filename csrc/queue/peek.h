// Reading text and numbers that another process may be writing: the result may be a mixture of old and new, which
// reports accept and everything else must not use. ThreadSanitizer is told that these races are meant.
#pragma once

#include <cstddef>
#include <string>

namespace ringred {

__attribute__((noinline, no_sanitize("thread"))) inline void peek_bytes(const void* place, void* copy,
                                                                        std::size_t bytes) {
  const auto* from = static_cast<const volatile unsigned char*>(place);
  auto* to = static_cast<unsigned char*>(copy);
  for (std::size_t i = 0; i < bytes; ++i) to[i] = from[i];
}

template <class Number>
Number peek(const Number& place) {
  Number copy;
  peek_bytes(&place, &copy, sizeof copy);
  return copy;
}

// Up to a zero, or all of the room.
__attribute__((noinline, no_sanitize("thread"))) inline std::string peek_text(const char* place, std::size_t room) {
  const auto* from = static_cast<const volatile char*>(place);
  std::string text;
  for (std::size_t i = 0; i < room; ++i) {
    const char letter = from[i];  // read once: the next time it may be another
    if (letter == '\0') break;
    text.push_back(letter);
  }
  return text;
}

}  // namespace ringred
