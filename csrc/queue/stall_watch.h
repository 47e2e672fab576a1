// Looks after operations that wait for long: reports them, and finds names that ranks have submitted to different
// process sets. The driver's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "csrc/queue/autopsy.h"
#include "csrc/queue/group.h"

namespace ringred {

class StallWatch {
 public:
  struct Setup {
    std::vector<RankBlock*> ranks;
    Scene scene;
    double stall_seconds;  // 0: no reports
    std::function<void(const std::string&)> report;
  };
  explicit StallWatch(Setup setup) : setup_(std::move(setup)) {}

  // Every 100 ms while something is in flight.
  void look(std::int64_t now, const std::vector<std::shared_ptr<Group>>& groups);

  // Asks all ranks for their stacks; look() prints the report when they have answered.
  void start_report(std::int64_t now);
  bool reporting() const { return deadline_ != 0; }

 private:
  // A name that waits in two process sets is looked at after this long: it is no coincidence of a moment.
  static constexpr std::int64_t confused_after = 300'000'000;
  // How long ranks have to send their stacks.
  static constexpr std::int64_t answer_time = 1'000'000'000;

  void wish_for_report(std::int64_t now);
  void fail_confused_names(const std::vector<std::shared_ptr<Group>>& groups);
  void finish_report(std::int64_t now);

  const Setup setup_;
  std::vector<std::uint32_t> requests_;  // for stacks, of each rank
  std::int64_t deadline_ = 0;            // of the report that waits for stacks; 0: none does
  std::int64_t reported_ = 0;            // the submission for which this rank last wished for a report
  std::int64_t wished_ = 0;              // when
  std::int64_t started_ = 0;             // rank 0's: when the last report began
};

}  // namespace ringred
