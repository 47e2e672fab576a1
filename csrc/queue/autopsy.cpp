#include "csrc/queue/autopsy.h"

#include "csrc/base/futex.h"
#include "csrc/queue/autopsy/causes.h"
#include "csrc/queue/autopsy/patient.h"
#include "csrc/queue/autopsy/screen.h"

namespace ringred {

std::string autopsy(const Scene& scene, const AutopsyOptions& options) {
  const std::uint64_t now = options.now != 0 ? options.now : static_cast<std::uint64_t>(monotonic_now());
  Case all{scene, now, pending(scene), {}};
  for (std::size_t rank = 0; rank < scene.ranks.size(); ++rank)
    all.patients.push_back(examine(scene, static_cast<int>(rank), options));
  for (std::size_t number = 0; number < all.operations.size(); ++number) {
    for (const int rank : all.operations[number].missing)
      all.patients[static_cast<std::size_t>(rank)].missing.push_back(number);
    for (const int rank : all.operations[number].submitted)
      all.patients[static_cast<std::size_t>(rank)].submitted.push_back(number);
  }
  return screen(all);
}

std::uint32_t request_stacks(RankBlock& target) {
  return target.requests.fetch_add(1, std::memory_order_seq_cst) + 1;
}

// Numbers wrap around.
bool answered(const RankBlock& target, std::uint32_t number) {
  const std::uint32_t answers = target.answers.load(std::memory_order_acquire);
  return static_cast<std::int32_t>(answers - number) >= 0;
}

}  // namespace ringred
