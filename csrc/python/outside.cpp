// Looking into a running job from a process that is none of its ranks: by the descriptors of the ranks' segments.
#include "csrc/python/outside.h"

#include <pybind11/stl.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "csrc/leaf/control.h"
#include "csrc/memory/segment.h"
#include "csrc/queue/autopsy.h"
#include "csrc/queue/bell.h"
#include "csrc/queue/flight_recorder.h"

namespace py = pybind11;

namespace ringred {
namespace {

// A rank's block in its segment; null where the rank has not come that far, has shut down, or is of another version.
RankBlock* rank_block_in(const Segment& segment) {
  const auto& control = *reinterpret_cast<const ControlBlock*>(segment.base());
  const std::uint64_t offset = control.engine.load(std::memory_order_acquire);
  if (offset == 0 || offset % 64 != 0 || offset > segment.size() || segment.size() - offset < sizeof(RankBlock))
    return nullptr;
  auto* block = reinterpret_cast<RankBlock*>(segment.base() + offset);
  return block->magic.load(std::memory_order_acquire) == RankBlock::magic_value ? block : nullptr;
}

void pause_a_little() {
  const timespec duration{0, 20'000'000};
  nanosleep(&duration, nullptr);
}

class Job {
 public:
  explicit Job(const std::vector<int>& descriptors) {
    for (const int descriptor : descriptors) {
      segments_.push_back(Segment::map(descriptor));
      RankBlock* block = rank_block_in(segments_.back());
      if (block == nullptr || block->size < 1 || block->size > most_ranks || block->rank < 0 ||
          block->rank >= block->size)
        continue;
      const auto size = static_cast<std::size_t>(block->size), rank = static_cast<std::size_t>(block->rank);
      if (scene_.ranks.size() < size) {
        scene_.ranks.resize(size, nullptr);
        scene_.bases.resize(size, nullptr);
        scene_.lengths.resize(size, 0);
        blocks_.resize(size, nullptr);
      }
      scene_.ranks[rank] = block;
      scene_.bases[rank] = segments_.back().base();
      scene_.lengths[rank] = segments_.back().size();
      blocks_[rank] = block;
    }
    if (blocks_.empty())
      fail_usage(
          "There is no rank to look into: the process has not come to the end of init(), has shut down, or runs "
          "another version of ringred.");
    scene_.alive = [this](int rank) {
      const RankBlock* block = scene_.ranks[static_cast<std::size_t>(rank)];
      return block == nullptr || kill(block->pid, 0) == 0 || errno == EPERM;
    };
  }

  // The number of the request to each rank; 0 where it cannot be seen.
  std::vector<std::uint32_t> ask_for_stacks(double seconds) {
    std::vector<std::uint32_t> requests(blocks_.size());
    for (std::size_t rank = 0; rank < blocks_.size(); ++rank) {
      if (blocks_[rank] == nullptr) continue;
      requests[rank] = request_stacks(*blocks_[rank]);
      ring(blocks_[rank]->bell);
    }
    const std::int64_t deadline = monotonic_now() + static_cast<std::int64_t>(seconds * 1e9);
    const auto all_answered = [&] {
      return std::equal(blocks_.begin(), blocks_.end(), requests.begin(), [](const RankBlock* block, auto request) {
        return block == nullptr || answered(*block, request);
      });
    };
    while (!all_answered() && monotonic_now() < deadline) pause_a_little();
    return requests;
  }

  const Scene& scene() const { return scene_; }
  const RankBlock& first() const { return **std::find_if(blocks_.begin(), blocks_.end(), std::identity()); }

 private:
  static constexpr int most_ranks = 1 << 16;

  std::deque<Segment> segments_;
  std::vector<RankBlock*> blocks_;  // by rank; null where not visible
  Scene scene_;
};

std::string autopsy_from_outside(const std::vector<int>& descriptors, bool stacks, double timeout) {
  const py::gil_scoped_release unlocked;
  Job job(descriptors);
  AutopsyOptions options;
  if (stacks) options.requests = job.ask_for_stacks(timeout);
  return autopsy(job.scene(), options);
}

std::string flight_recorder_from_outside(int descriptor) {
  const Job job({descriptor});
  return flight_recorder_json(job.first());
}

}  // namespace

void bind_outside(py::module_& module) {
  module.def("autopsy_from_outside", &autopsy_from_outside, py::arg("descriptors"), py::arg("stacks"),
             py::arg("timeout"));
  module.def("flight_recorder_from_outside", &flight_recorder_from_outside, py::arg("descriptor"));
}

}  // namespace ringred
