#include "csrc/cuda/tape.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "csrc/base/error.h"
#include "csrc/cuda/rehearsal.h"

namespace ringred::cuda {
namespace {

std::size_t at(int number) {
  return static_cast<std::size_t>(number);
}

// Neighbours joined.
std::vector<Run> runs_of(const std::vector<int>& chunks) {
  std::vector<Run> runs;
  for (int chunk : chunks)
    if (!runs.empty() && runs.back().end == chunk)
      ++runs.back().end;
    else
      runs.push_back({chunk, chunk + 1});
  return runs;
}

// A move while it is put together.
struct Draft {
  Move move;
  const std::vector<int>* chunks = nullptr;
  std::vector<Dependency> after;
};

int used(const int (&peers)[most_peers]) {
  return static_cast<int>(std::count_if(peers, peers + most_peers, [](int peer) { return peer >= 0; }));
}

// One lane of one rank. `sent_in` and `taken_in` say for each step in which of the lane's moves its directions are.
class Cutter {
 public:
  Cutter(const Lane& lane, const std::vector<bool>& completes) : sent_in(lane.size(), -1), taken_in(lane.size(), -1) {
    for (std::size_t step = 0; step < lane.size(); ++step) {
      if (lane[step].to >= 0) sent_in[step] = send(lane[step]);
      if (lane[step].from >= 0) taken_in[step] = take(lane[step], completes[step]);
    }
  }

  std::vector<Draft> drafts;
  std::vector<int> sent_in, taken_in;

 private:
  int send(const Step& step) {
    if (!may_join(step, step.out) || used(drafts.back().move.to) == most_peers) {
      open(step, step.out);
      drafts.back().move.reads_own = true;
    }
    Move& move = drafts.back().move;
    move.to[used(move.to)] = step.to;
    return last();
  }

  int take(const Step& step, bool completes) {
    const bool join = may_join(step, step.in) && step.act == Act::reduce;
    if (!join || used(drafts.back().move.to) > 0 || used(drafts.back().move.from) == most_peers) {
      open(step, step.in, step.to < 0);
      drafts.back().move.reads_own = step.act == Act::reduce;
    }
    Move& move = drafts.back().move;
    move.from[used(move.from)] = step.from;
    move.finishes = completes && step.act == Act::reduce;
    return last();
  }

  // A step that waits for other lanes opens a move, lest what came before it waits too.
  bool may_join(const Step& step, const std::vector<int>& chunks) const {
    return !drafts.empty() && step.after.empty() && *drafts.back().chunks == chunks;
  }
  void open(const Step& step, const std::vector<int>& chunks, bool waits = true) {
    drafts.push_back({Move{}, &chunks, waits ? step.after : std::vector<Dependency>{}});
  }
  int last() const { return static_cast<int>(drafts.size()) - 1; }
};

// Whether anybody reads what the move leaves in the rank's own buffer: the next move that touches one of its chunks
// does, unless it writes without reading; and at the end the caller does.
class Readers {
 public:
  Readers(const std::vector<Touch>& touches, const std::vector<Cutter>& lanes, int chunks)
      : lanes_(lanes), moves_of_(at(chunks)) {
    for (const Touch& touch : touches) {
      const Cutter& lane = lanes[at(touch.lane)];
      const int move = (touch.writes ? lane.taken_in : lane.sent_in)[at(touch.step)];
      for (int chunk : *lane.drafts[at(move)].chunks) {
        std::vector<std::pair<int, int>>& order = moves_of_[at(chunk)];
        const std::pair<int, int> place{touch.lane, move};
        if (std::find(order.begin(), order.end(), place) == order.end()) order.push_back(place);
      }
    }
  }

  bool read_later(int lane, int move) const {
    const std::vector<int>& chunks = *lanes_[at(lane)].drafts[at(move)].chunks;
    return std::any_of(chunks.begin(), chunks.end(), [&](int chunk) {
      const std::vector<std::pair<int, int>>& order = moves_of_[at(chunk)];
      const auto next = std::find(order.begin(), order.end(), std::pair{lane, move}) + 1;
      return next == order.end() || lanes_[at(next->first)].drafts[at(next->second)].move.reads_own;
    });
  }

 private:
  const std::vector<Cutter>& lanes_;
  std::vector<std::vector<std::pair<int, int>>> moves_of_;  // by chunk: (lane, move) in the order of the rehearsal
};

int widest_message(const Schedule& schedule) {
  std::size_t widest = 0;
  for (const std::vector<Lane>& lanes : schedule.ranks)
    for (const Lane& lane : lanes)
      for (const Step& step : lane) widest = std::max(widest, step.out.size());
  return static_cast<int>(widest);
}

void append(Tape& tape, const Draft& draft, const std::vector<Cutter>& lanes) {
  Move move = draft.move;
  const std::vector<Run> runs = runs_of(*draft.chunks);
  move.first_run = static_cast<int>(tape.runs.size());
  tape.runs.insert(tape.runs.end(), runs.begin(), runs.end());
  move.end_run = static_cast<int>(tape.runs.size());
  move.first_wait = static_cast<int>(tape.waits.size());
  for (const Dependency& other : draft.after) {
    const Cutter& lane = lanes[at(other.lane)];
    tape.waits.push_back({other.lane, std::max(lane.sent_in[at(other.step)], lane.taken_in[at(other.step)])});
  }
  move.end_wait = static_cast<int>(tape.waits.size());
  tape.moves.push_back(move);
}

Tape make_tape(const Schedule& schedule, const Rehearsal& rehearsal, int rank, int widest) {
  const std::vector<Lane>& steps = schedule.ranks[at(rank)];
  std::vector<Cutter> lanes;
  for (std::size_t lane = 0; lane < steps.size(); ++lane)
    lanes.emplace_back(steps[lane], rehearsal.completes[at(rank)][lane]);
  const Readers readers(rehearsal.touches[at(rank)], lanes, schedule.chunks);
  Tape tape{rank, schedule.size, schedule.chunks, widest, {0}, {}, {}, {}};
  for (int lane = 0; lane < static_cast<int>(lanes.size()); ++lane) {
    std::vector<Draft>& drafts = lanes[at(lane)].drafts;
    for (int move = 0; move < static_cast<int>(drafts.size()); ++move) {
      Move& draft = drafts[at(move)].move;
      draft.writes_own = used(draft.from) > 0 && readers.read_later(lane, move);
      append(tape, drafts[at(move)], lanes);
    }
    tape.lane_begin.push_back(static_cast<int>(tape.moves.size()));
  }
  for (const Wait& wait : tape.waits) tape.moves[at(tape.lane_begin[at(wait.lane)] + wait.move)].awaited = true;
  return tape;
}

}  // namespace

Traffic traffic_of(const Tape& tape) {
  Traffic traffic;
  for (const Move& move : tape.moves) {
    int chunks = 0;
    for (int run = move.first_run; run < move.end_run; ++run)
      chunks += tape.runs[at(run)].end - tape.runs[at(run)].first;
    traffic.reads += chunks * (used(move.from) + (move.reads_own ? 1 : 0));
    traffic.writes += chunks * (used(move.to) + (move.writes_own ? 1 : 0));
  }
  return traffic;
}

std::vector<Tape> make_tapes(const Schedule& schedule) {
  if (schedule.size < 1 || schedule.size > most_ranks)
    fail_usage("the device plays schedules of 1 to " + std::to_string(most_ranks) + " ranks: got " +
               std::to_string(schedule.size));
  const Rehearsal rehearsal = rehearse(schedule);
  const int widest = widest_message(schedule);
  std::vector<Tape> tapes;
  for (int rank = 0; rank < schedule.size; ++rank) tapes.push_back(make_tape(schedule, rehearsal, rank, widest));
  return tapes;
}

}  // namespace ringred::cuda
