#include "csrc/reduce/stream_copy.h"

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ringred {

#if defined(__SSE2__)

namespace {

constexpr std::size_t line = 64, ahead = 4096;  // how far the processor is told to read ahead, in bytes
constexpr std::size_t worth_streaming = std::size_t{256} << 10;  // less may stay in the second-level cache

void stream_lines(std::byte* place, const std::byte* data, std::size_t lines) {
  for (std::size_t i = 0; i < lines; ++i, place += line, data += line) {
    _mm_prefetch(reinterpret_cast<const char*>(data) + ahead, _MM_HINT_T0);
    __m128i part[4];
    for (int k = 0; k < 4; ++k) part[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + k);
    for (int k = 0; k < 4; ++k) _mm_stream_si128(reinterpret_cast<__m128i*>(place) + k, part[k]);
  }
  _mm_sfence();
}

}  // namespace

void stream_copy(std::byte* place, const std::byte* data, std::size_t bytes) {
  const std::size_t head = (line - reinterpret_cast<std::uintptr_t>(place) % line) % line;
  if (bytes < worth_streaming) {
    if (bytes > 0) std::memcpy(place, data, bytes);
    return;
  }
  const std::size_t lines = (bytes - head) / line, done = head + lines * line;
  std::memcpy(place, data, head);
  stream_lines(place + head, data + head, lines);
  std::memcpy(place + done, data + done, bytes - done);
}

#else

void stream_copy(std::byte* place, const std::byte* data, std::size_t bytes) {
  if (bytes > 0) std::memcpy(place, data, bytes);
}

#endif

}  // namespace ringred
