// What a collective call is: all that the ranks must agree on, as a fingerprint for the fast path and as a sentence for
// the error. Where the buffer lies is not part of it; ranks may differ in that.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "csrc/base/types.h"

namespace ringred {

enum class CallKind : std::uint8_t { barrier, broadcast, allreduce, allgather, alltoall, reducescatter, join, update };

struct Call {
  CallKind kind = CallKind::barrier;
  Op op = Op::sum;
  DType dtype = DType::u8;
  int root = -1;
  std::span<const std::int64_t> shape{};
  std::string_view tag{};  // the caller's own name for the call, e.g. a bucket's

  std::uint64_t fingerprint() const;
  std::string describe() const;  // "allreduce(op=Sum, dtype=float32, shape=[4, 3])"
};

std::string_view name_of(CallKind kind);

// A description in `room` bytes. One that has to be cut ends with the fingerprint, in which different ones differ.
std::string fit_description(const std::string& whole, std::uint64_t fingerprint, std::size_t room);
std::string fingerprint_text(std::uint64_t fingerprint);  // "(fingerprint 0123456789abcdef)"

}  // namespace ringred
