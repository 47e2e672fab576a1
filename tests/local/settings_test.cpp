// The settings table and its rules.
#include "csrc/base/settings.h"

#include <map>

#include "tests/check.h"

using namespace ringred;

namespace {

Lookup with(std::string_view name, std::string_view value) {
  return [=](std::string_view asked) -> std::optional<std::string> {
    if (asked == name) return std::string(value);
    return std::nullopt;
  };
}

}  // namespace

TEST("defaults are what the table says") {
  const Settings settings = read_settings(with("", ""));
  CHECK_EQ(settings.timeout_seconds, 1800.0);
  CHECK_EQ(settings.algorithm, "auto");
  CHECK(settings.huge_pages);
  CHECK_EQ(settings.fusion_bytes, std::size_t{64} << 20);
  CHECK(settings.one_shot_bytes >= 64 && settings.slot_bytes >= settings.one_shot_bytes);
}

TEST("sizes count in 1024s") {
  CHECK_EQ(read_settings(with("RINGRED_SLOT_BYTES", "64K")).slot_bytes, std::size_t{65536});
  CHECK_EQ(read_settings(with("RINGRED_SLOT_BYTES", "2M")).slot_bytes, std::size_t{2097152});
  CHECK_EQ(read_settings(with("RINGRED_ARENA_BYTES", "3G")).arena_bytes, std::size_t{3} << 30);
  CHECK_EQ(read_settings(with("RINGRED_SLOT_BYTES", "1030")).slot_bytes, std::size_t{1088});
  CHECK_EQ(read_settings(with("RINGRED_FUSION_THRESHOLD", "0")).fusion_bytes, std::size_t{0});
}

TEST("what is wrong is named with the rule and the value") {
  const auto rejects = [](std::string_view name, std::string_view value, std::string_view text) {
    CHECK_THROWS(read_settings(with(name, value)), text);
  };
  rejects("RINGRED_TIMEOUT_SECONDS", "soon",
          "must be a number of seconds from 0 to 1e9: RINGRED_TIMEOUT_SECONDS='soon'");
  rejects("RINGRED_TIMEOUT_SECONDS", "-1", "must be a number of seconds");
  rejects("RINGRED_TIMEOUT_SECONDS", "nan", "must be a number of seconds");
  rejects("RINGRED_ALGORITHM", "rings", "must be one of auto, one_shot, two_shot");
  rejects("RINGRED_SLOT_BYTES", "", "must be a whole number from 1024 to");
  rejects("RINGRED_SLOT_BYTES", "12Q", "RINGRED_SLOT_BYTES='12Q'");
  rejects("RINGRED_SLOT_BYTES", "99999999999999999999", "must be a whole number");
  rejects("RINGRED_SLOT_BYTES", "9999999999999G", "must be a whole number");
  rejects("RINGRED_HUGE_PAGES", "yes", "from 0 to 1");
  rejects("RINGRED_BOOTSTRAP", "slurm", "must be one of auto, mpi, store, single");
  rejects("RINGRED_GPU", "yes", "must be one of staged, direct: it is 'yes'");
  rejects("RINGRED_LINK", "gloo", "must be one of auto, mpi, tcp");
}

TEST("only what must agree is exchanged") {
  const auto rows = agreed_settings(with("RINGRED_SLOT_BYTES", "64K"));
  bool found = false;
  for (const std::string& row : rows) {
    found |= row == "RINGRED_SLOT_BYTES=64K";
    CHECK(row.find("RINGRED_NODE") == std::string::npos);
  }
  CHECK(found);
}
