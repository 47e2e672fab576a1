// What is kept of operations: the flight recorder, the timeline, and who wants to hear of their end.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "csrc/queue/flight_recorder.h"
#include "csrc/queue/group.h"
#include "csrc/queue/timeline.h"

namespace ringred {

class Records : public Group::Observer {
 public:
  explicit Records(RankBlock& mine) : recorder_(mine) {}

  Timeline& timeline() { return timeline_; }

  // Any thread. Operations that somebody asked to be told of, when they are done. Each request for one that is done
  // already brings it once more. After close() what is left, then none.
  void tell(const std::shared_ptr<Operation>& operation);
  std::vector<std::shared_ptr<Operation>> await_told();
  void close();

  // The driver's.
  bool wants_stages() const override { return timeline_.on(); }
  void stage(std::uint32_t group, Stage stage, std::int64_t begin, std::int64_t end) override;
  void batch(std::uint32_t group, const std::vector<std::shared_ptr<Operation>>& operations, std::int64_t begin,
             std::int64_t end) override;
  void ended(std::uint32_t group, const Operation& operation, bool failed) override;
  void completed(const std::shared_ptr<Operation>& operation) override;

 private:
  Timeline timeline_;
  FlightRecorder recorder_;
  std::mutex told_mutex_;
  std::condition_variable told_change_;
  std::vector<std::shared_ptr<Operation>> told_;
  bool told_closed_ = false;
};

}  // namespace ringred
