#include "csrc/queue/records.h"

#include <string>
#include <utility>

namespace ringred {

void Records::stage(std::uint32_t group, Stage stage, std::int64_t begin, std::int64_t end) {
  const char* name = stage == Stage::copy_in ? "pack" : stage == Stage::reduce ? "reduce" : "unpack";
  timeline_.span(track_of(group), name, static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end));
}

void Records::batch(std::uint32_t group, const std::vector<std::shared_ptr<Operation>>& operations, std::int64_t begin,
                    std::int64_t end) {
  const Request& first = operations.front()->request;
  const std::string name = operations.size() == 1 ? std::string(name_of(first.kind)) + " " + first.name
                                                  : std::string(name_of(first.kind)) + " of " +
                                                        std::to_string(operations.size()) + " tensors";
  timeline_.span(track_of(group), name, static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end));
}

void Records::ended(std::uint32_t group, const Operation& operation, bool failed) {
  const Request& request = operation.request;
  const auto time = [](std::int64_t at) { return static_cast<std::uint64_t>(at); };
  const DType dtype = request.tensors.empty() ? DType::u8 : request.tensors.front().dtype;
  recorder_.record({request.name, request.kind, request.op, dtype, group, request.bytes(), time(operation.submitted),
                    time(operation.agreed), time(operation.started), time(operation.ended), failed});
  if (timeline_.on())
    timeline_.operation(reinterpret_cast<std::uintptr_t>(&operation), request.name, time(operation.submitted),
                        time(operation.agreed), time(operation.started), time(operation.ended), request.kind,
                        request.bytes());
}

void Records::completed(const std::shared_ptr<Operation>& operation) {
  const std::lock_guard lock(told_mutex_);
  if (!operation->tell || operation->told) return;
  operation->told = true;
  told_.push_back(operation);
  told_change_.notify_all();
}

void Records::tell(const std::shared_ptr<Operation>& operation) {
  const std::lock_guard lock(told_mutex_);
  operation->tell = true;
  if (!operation->done()) return;
  operation->told = true;
  told_.push_back(operation);
  told_change_.notify_all();
}

std::vector<std::shared_ptr<Operation>> Records::await_told() {
  std::unique_lock lock(told_mutex_);
  told_change_.wait(lock, [&] { return !told_.empty() || told_closed_; });
  return std::exchange(told_, {});
}

void Records::close() {
  const std::lock_guard lock(told_mutex_);
  told_closed_ = true;
  told_change_.notify_all();
}

}  // namespace ringred
