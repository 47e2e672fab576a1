#include "csrc/schedule/draw.h"

#include <algorithm>
#include <cstdio>

#include "csrc/schedule/predict.h"

namespace ringred {
namespace {

// 3, 4, 5, 0 -> "3-5,0"
std::string chunk_names(const std::vector<int>& chunks) {
  std::string text;
  for (std::size_t first = 0, last = 0; first < chunks.size(); first = last + 1) {
    for (last = first; last + 1 < chunks.size() && chunks[last + 1] == chunks[last] + 1;) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(chunks[first]);
    if (last > first) text += "-" + std::to_string(chunks[last]);
  }
  return text;
}

std::string cell(const Step& step) {
  std::string text;
  if (!step.out.empty()) text += chunk_names(step.out) + ">" + std::to_string(step.to);
  if (!step.in.empty())
    text += (text.empty() ? "" : " ") + chunk_names(step.in) + (step.act == Act::reduce ? "+<" : "<") +
            std::to_string(step.from);
  for (const Dependency& dependency : step.after)
    text += " @" + std::to_string(dependency.lane) + "." + std::to_string(dependency.step);
  return text;
}

using Row = std::vector<std::string>;

std::string lay_out(const std::vector<Row>& rows) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const Row& row : rows)
    for (std::size_t column = 0; column < row.size(); ++column)
      widths[column] = std::max(widths[column], row[column].size());
  std::string text;
  for (const Row& row : rows) {
    std::string line;
    for (std::size_t column = 0; column < row.size(); ++column)
      line += row[column] + std::string(widths[column] - row[column].size() + 3, ' ');
    line.erase(line.find_last_not_of(' ') + 1);
    text += "  " + line + "\n";
  }
  return text;
}

std::string draw_lane(const Schedule& schedule, std::size_t lane) {
  Row heading{"step"};
  std::size_t length = 0;
  for (int rank = 0; rank < schedule.size; ++rank) {
    heading.push_back("rank " + std::to_string(rank));
    const std::vector<Lane>& lanes = schedule.ranks[static_cast<std::size_t>(rank)];
    if (lane < lanes.size()) length = std::max(length, lanes[lane].size());
  }
  std::vector<Row> rows{heading};
  for (std::size_t step = 0; step < length; ++step) {
    rows.push_back({std::to_string(step)});
    for (const std::vector<Lane>& lanes : schedule.ranks)
      rows.back().push_back(lane < lanes.size() && step < lanes[lane].size() ? cell(lanes[lane][step]) : "");
  }
  return lay_out(rows);
}

std::string title(const Schedule& schedule) {
  const Counts counts = count(schedule);
  char share[32];
  std::snprintf(share, sizeof share, "%.2f", counts.share);
  return schedule.algorithm + ": ranks " + std::to_string(schedule.size) + ", chunks " +
         std::to_string(schedule.chunks) + ", rounds " + std::to_string(counts.rounds) + "; the busiest rank sends " +
         std::to_string(counts.messages) + " messages, " + share + " times the vector\n";
}

}  // namespace

std::string draw(const Schedule& schedule) {
  std::size_t lanes = 0;
  bool has_dependencies = false;
  for (const std::vector<Lane>& own : schedule.ranks) {
    lanes = std::max(lanes, own.size());
    for (const Lane& lane : own)
      for (const Step& step : lane) has_dependencies |= !step.after.empty();
  }
  std::string text = title(schedule) +
                     "  2>1 sends chunk 2 to rank 1; 2<1 takes chunk 2 from rank 1; 2+<1 adds it to its own" +
                     (has_dependencies ? "; @0.3 after step 3 of lane 0" : "") + "\n";
  for (std::size_t lane = 0; lane < lanes; ++lane)
    text += (lanes > 1 ? "\nlane " + std::to_string(lane) + "\n" : "\n") + draw_lane(schedule, lane);
  return text;
}

}  // namespace ringred
