#include "csrc/schedule/predict.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "csrc/schedule/simulate.h"

namespace ringred {

double predict_seconds(const Schedule& schedule, double bytes, const Cost& cost) {
  const Hardware hardware{.card = {cost.alpha, cost.beta}, .gamma = cost.gamma, .step = cost.step};
  return simulate(outline_of(schedule), bytes, hardware).seconds;
}

Counts count(const Schedule& schedule) {
  Counts counts;
  for (const std::vector<Lane>& lanes : schedule.ranks) {
    int messages = 0;
    std::size_t chunks = 0;
    for (const Lane& lane : lanes)
      for (const Step& step : lane) {
        messages += step.out.empty() ? 0 : 1;
        chunks += step.out.size();
      }
    counts.messages = std::max(counts.messages, messages);
    counts.share = std::max(counts.share, static_cast<double>(chunks) / schedule.chunks);
  }
  counts.rounds = static_cast<int>(std::lround(predict_seconds(schedule, 0, {.alpha = 1})));
  return counts;
}

}  // namespace ringred
