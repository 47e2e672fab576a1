// Where a list of chunks lies in the buffer, and a walk along it in pieces.
//
// Invariant: the pieces depend on the list, the buffer's geometry and the limit alone, so both ends of a message cut it
// alike; an empty list of bytes has no piece, and nothing is sent for it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace ringred {

// Bytes begin..end-1 of the buffer.
struct Span {
  std::size_t begin;
  std::size_t end;
};

// Chunk c of C covers the elements count*c/C .. count*(c+1)/C - 1.
inline Span chunk_span(int chunk, int chunks, std::size_t count, std::size_t element_size) {
  const auto number = static_cast<std::size_t>(chunk), total = static_cast<std::size_t>(chunks);
  return {count * number / total * element_size, count * (number + 1) / total * element_size};
}

// The spans of a list, neighbours joined, empty ones left out, appended to `spans`.
inline void append_spans(std::vector<Span>& spans, const std::vector<int>& list, int chunks, std::size_t count,
                         std::size_t element_size) {
  const std::size_t first = spans.size();
  for (int chunk : list) {
    const Span span = chunk_span(chunk, chunks, count, element_size);
    if (span.begin == span.end) continue;
    if (spans.size() > first && spans.back().end == span.begin)
      spans.back().end = span.end;
    else
      spans.push_back(span);
  }
}

class Cursor {
 public:
  Cursor() = default;
  Cursor(const Span* first, const Span* last) : span_(first), last_(last), at_(first == last ? 0 : first->begin) {}

  bool done() const { return span_ == last_; }
  std::size_t at() const { return at_; }                // of the buffer; not when done
  std::size_t travelled() const { return travelled_; }  // bytes behind it
  std::size_t piece(std::size_t limit) const { return std::min(limit, span_->end - at_); }

  void pass(std::size_t bytes) {
    travelled_ += bytes;
    at_ += bytes;
    if (at_ == span_->end && ++span_ != last_) at_ = span_->begin;
  }

 private:
  const Span* span_ = nullptr;
  const Span* last_ = nullptr;
  std::size_t at_ = 0;
  std::size_t travelled_ = 0;
};

}  // namespace ringred
