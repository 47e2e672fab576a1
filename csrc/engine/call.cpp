#include "csrc/engine/call.h"

#include <cstdio>

#include "csrc/base/mix.h"
#include "csrc/base/text.h"

namespace ringred {
std::uint64_t Call::fingerprint() const {
  std::uint64_t hash = mix(0, static_cast<std::uint64_t>(kind) << 16 | static_cast<std::uint64_t>(op) << 8 |
                                  static_cast<std::uint64_t>(dtype));
  hash = mix(hash, static_cast<std::uint64_t>(root) << 32 | shape.size());
  for (const std::int64_t extent : shape) hash = mix(hash, static_cast<std::uint64_t>(extent));
  for (const char letter : tag) hash = mix(hash, static_cast<unsigned char>(letter));
  return hash;
}

std::string Call::describe() const {
  std::string text(name_of(kind));
  std::string arguments;
  const auto add = [&](std::string_view name, const std::string& value) {
    arguments += (arguments.empty() ? "" : ", ") + std::string(name) + "=" + value;
  };
  if (kind == CallKind::allreduce) add("op", std::string(name_of(op)));
  if (kind == CallKind::broadcast) add("root_rank", std::to_string(root));
  if (kind != CallKind::barrier) {
    std::string extents;
    for (const std::int64_t extent : shape) extents += (extents.empty() ? "" : ", ") + std::to_string(extent);
    add("dtype", std::string(info(dtype).name));
    add("shape", "[" + extents + "]");
  }
  if (!tag.empty()) add("tag", "'" + std::string(tag) + "'");
  return text + "(" + arguments + ")";
}

std::string_view name_of(CallKind kind) {
  switch (kind) {
    case CallKind::barrier:
      return "barrier";
    case CallKind::broadcast:
      return "broadcast";
    case CallKind::allreduce:
      return "allreduce";
    case CallKind::allgather:
      return "allgather";
    case CallKind::alltoall:
      return "alltoall";
    case CallKind::reducescatter:
      return "reducescatter";
    case CallKind::join:
      return "join";
    case CallKind::update:
      return "update";
  }
  return "?";
}

std::string fingerprint_text(std::uint64_t fingerprint) {
  char text[40];
  std::snprintf(text, sizeof text, "(fingerprint %016llx)", static_cast<unsigned long long>(fingerprint));
  return text;
}

std::string fit_description(const std::string& whole, std::uint64_t fingerprint, std::size_t room) {
  if (whole.size() <= room) return whole;
  const std::string end = "... " + fingerprint_text(fingerprint);
  return std::string(cut(whole, room - end.size())) + end;
}

}  // namespace ringred
