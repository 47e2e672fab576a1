// Tapes, walked by hand: moves wait for their messages and slots as the device's blocks do, in random order.
#include "csrc/cuda/tape.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "tests/check.h"

using namespace ringred;
using namespace ringred::cuda;

namespace {

// Byte r counts how often rank r is in the sum; `finished` how often the sum was finished on its way.
struct Value {
  std::uint64_t counts = 0;
  int finished = 0;
  friend bool operator==(const Value&, const Value&) = default;
};

constexpr std::uint64_t all_ones = 0x0101010101010101u;
constexpr Value stale{0xff, 99};  // what a move leaves behind that need not write

std::uint64_t complete_sum(int size) {
  return size == 8 ? all_ones : all_ones & ((std::uint64_t{1} << (8 * size)) - 1);
}

std::size_t at(int number) {
  return static_cast<std::size_t>(number);
}

// All ranks' lanes, each a block.
class Walk {
 public:
  Walk(const std::vector<Tape>& tapes, std::size_t slots, unsigned seed) : tapes_(tapes), slots_(slots), random_(seed) {
    for (const Tape& tape : tapes) {
      ended_.emplace_back(at(tape.lanes()), 0);
      values_.emplace_back(at(tape.chunks), Value{std::uint64_t{1} << (8 * tape.rank), 0});
    }
  }

  // Whether all come to their ends.
  bool run() {
    std::vector<std::pair<int, int>> blocks;
    for (const Tape& tape : tapes_)
      for (int lane = 0; lane < tape.lanes(); ++lane) blocks.emplace_back(tape.rank, lane);
    for (bool moved = true; moved;) {
      moved = false;
      std::shuffle(blocks.begin(), blocks.end(), random_);
      for (const auto& [rank, lane] : blocks)
        for (unsigned turn = random_() % 4; turn < 4 && play(tapes_[at(rank)], lane); ++turn) moved = true;
    }
    return std::all_of(tapes_.begin(), tapes_.end(), [&](const Tape& tape) {
      for (int lane = 0; lane < tape.lanes(); ++lane)
        if (ended_[at(tape.rank)][at(lane)] < moves_of(tape, lane)) return false;
      return true;
    });
  }

  const std::vector<std::vector<Value>>& values() const { return values_; }
  bool all_taken() const {
    return std::all_of(fifos_.begin(), fifos_.end(), [](const auto& fifo) { return fifo.second.empty(); });
  }

 private:
  using Message = std::vector<Value>;
  using Fifo = std::deque<Message>;

  static int moves_of(const Tape& tape, int lane) { return tape.lane_begin[at(lane + 1)] - tape.lane_begin[at(lane)]; }

  bool play(const Tape& tape, int lane) {
    int& ended = ended_[at(tape.rank)][at(lane)];
    if (ended == moves_of(tape, lane)) return false;
    const Move& move = tape.moves[at(tape.lane_begin[at(lane)] + ended)];
    if (!may_play(tape, lane, move)) return false;
    std::size_t place = 0;
    std::vector<Message> arrived, sent;
    for (int peer : move.from)
      if (peer >= 0) {
        Fifo& fifo = fifos_[{peer, tape.rank, lane}];
        arrived.push_back(fifo.front());
        fifo.pop_front();
      }
    Message message;
    for (int run = move.first_run; run < move.end_run; ++run)
      for (int chunk = tape.runs[at(run)].first; chunk < tape.runs[at(run)].end; ++chunk)
        message.push_back(result(move, arrived, place++, values_[at(tape.rank)][at(chunk)]));
    for (const Message& each : arrived) CHECK_EQ(each.size(), message.size());
    for (int peer : move.to)
      if (peer >= 0) fifos_[{tape.rank, peer, lane}].push_back(message);
    ++ended;
    return true;
  }

  Value result(const Move& move, const std::vector<Message>& arrived, std::size_t place, Value& own) const {
    Value value = move.reads_own ? own : Value{};
    for (const Message& message : arrived) {
      value.counts += message.at(place).counts;
      value.finished += message.at(place).finished;
    }
    if (move.finishes) CHECK_EQ(value.counts, complete_sum(tapes_[0].size));
    value.finished += move.finishes ? 1 : 0;
    if (!arrived.empty()) own = move.writes_own ? value : stale;
    return value;
  }

  bool may_play(const Tape& tape, int lane, const Move& move) {
    for (int wait = move.first_wait; wait < move.end_wait; ++wait)
      if (ended_[at(tape.rank)][at(tape.waits[at(wait)].lane)] <= tape.waits[at(wait)].move) return false;
    for (int peer : move.from)
      if (peer >= 0 && fifos_[{peer, tape.rank, lane}].empty()) return false;
    for (int peer : move.to)
      if (peer >= 0 && fifos_[{tape.rank, peer, lane}].size() >= slots_) return false;
    return true;
  }

  const std::vector<Tape>& tapes_;
  std::size_t slots_;
  std::minstd_rand random_;
  std::vector<std::vector<int>> ended_;     // by rank, lane: moves
  std::vector<std::vector<Value>> values_;  // by rank, chunk
  std::map<std::tuple<int, int, int>, Fifo> fifos_;
};

void check_walk(const Schedule& schedule, std::size_t slots, unsigned seed) {
  const std::vector<Tape> tapes = make_tapes(schedule);
  Walk walk(tapes, slots, seed);
  if (!walk.run()) return CHECK_EQ(schedule.algorithm + " stands still", std::to_string(schedule.size) + " ranks");
  CHECK(walk.all_taken());
  const Value right{complete_sum(schedule.size), schedule.size > 1 ? 1 : 0};
  for (const std::vector<Value>& values : walk.values())
    for (const Value& value : values) {
      CHECK_EQ(value.counts, right.counts);
      CHECK_EQ(value.finished, right.finished);
    }
}

void check_walks(const Schedule& schedule) {
  for (std::size_t slots : {2u, 3u, 8u})
    for (unsigned seed = 1; seed <= 3; ++seed) check_walk(schedule, slots, seed);
}

// Reads and writes of whole vectors that the busiest rank does.
double most_traffic(Algorithm algorithm, int size, int pipeline) {
  int most = 0;
  const std::vector<Tape> tapes = make_tapes(record(algorithm, size, pipeline));
  for (const Tape& tape : tapes) {
    const Traffic traffic = traffic_of(tape);
    most = std::max(most, traffic.reads + traffic.writes);
  }
  return static_cast<double>(most) / tapes[0].chunks;
}

}  // namespace

TEST("every algorithm: all ranks end with complete sums, finished once, on 1 to 8 ranks") {
  for (const AlgorithmInfo& row : algorithm_table)
    for (int size = 1; size <= most_ranks; ++size)
      for (int pipeline : {1, 2, 7}) check_walks(record(row.algorithm, size, pipeline));
}

TEST("hierarchies too") {
  for (int size = 2; size <= most_ranks; ++size)
    for (int local = 1; local <= size; ++local) {
      if (size % local != 0) continue;
      check_walks(record_hierarchical(size, local));
      for (const AlgorithmInfo& row : algorithm_table) check_walks(record_two_level(size, local, row.algorithm, 3));
    }
}

TEST("one slot is too few for a ring, whose ranks would all hold what the next one waits for") {
  const std::vector<Tape> tapes = make_tapes(record(Algorithm::ring, 4, 1));
  Walk walk(tapes, 1, 1);
  CHECK(!walk.run());
}

TEST("a ring's moves are a send, relays and a take, and sums on their way do not touch the own buffer") {
  const Tape tape = make_tapes(record(Algorithm::ring, 4, 1))[1];
  CHECK_EQ(tape.moves.size(), 7u);
  CHECK_EQ(tape.widest, 1);
  for (std::size_t move = 0; move < tape.moves.size(); ++move) {
    CHECK_EQ(tape.moves[move].from[0], move > 0 ? 0 : -1);
    CHECK_EQ(tape.moves[move].to[0], move < 6 ? 2 : -1);
    CHECK_EQ(tape.moves[move].reads_own, move <= 3);
    CHECK_EQ(tape.moves[move].writes_own, move >= 3);
    CHECK_EQ(tape.moves[move].finishes, move == 3);
  }
}

TEST("an inner rank of a tree adds both children and its own in one move, and hands both the result in one") {
  const Tape tape = make_tapes(record(Algorithm::double_tree, 8, 2))[4];
  const Move& up = tape.moves[at(tape.lane_begin[0])];
  CHECK(up.from[0] == 2 && up.from[1] == 6 && up.to[0] == 0 && up.to[1] == -1 && up.reads_own && !up.writes_own);
  const Move& down = tape.moves[at(tape.lane_begin[1])];
  CHECK(down.from[0] == 0 && down.from[1] == -1 && down.to[0] == 2 && down.to[1] == 6 && !down.reads_own);
  CHECK_EQ(down.end_wait - down.first_wait, 1);
}

TEST("reads and writes of the busiest rank, in vectors") {
  CHECK_EQ(most_traffic(Algorithm::ring, 4, 1), 20.0 / 4);  // 6n - 4 chunks
  CHECK_EQ(most_traffic(Algorithm::ring, 8, 1), 44.0 / 8);
  CHECK_EQ(most_traffic(Algorithm::double_tree, 4, 16), 6.0);
  CHECK_EQ(most_traffic(Algorithm::recursive_doubling, 4, 1), 9.0);
}

TEST("what one rank reads, another has written or had") {
  for (const AlgorithmInfo& row : algorithm_table)
    for (int size = 2; size <= most_ranks; ++size) {
      int sent = 0, taken = 0;
      for (const Tape& tape : make_tapes(record(row.algorithm, size, 4))) {
        const Traffic traffic = traffic_of(tape);
        int own_reads = 0, own_writes = 0;
        for (const Move& move : tape.moves)
          for (int run = move.first_run; run < move.end_run; ++run) {
            own_reads += move.reads_own ? tape.runs[at(run)].end - tape.runs[at(run)].first : 0;
            own_writes += move.writes_own ? tape.runs[at(run)].end - tape.runs[at(run)].first : 0;
          }
        taken += traffic.reads - own_reads;
        sent += traffic.writes - own_writes;
        CHECK(own_reads >= tape.chunks && own_writes >= tape.chunks);
      }
      CHECK_EQ(sent, taken);
    }
}

TEST("in all, a ring reads and writes 6n - 4 vectors and trees one more, for their roots hand out what they keep") {
  for (int size = 2; size <= most_ranks; ++size)
    for (const Algorithm algorithm : {Algorithm::ring, Algorithm::double_tree}) {
      int touched = 0, chunks = 0;
      for (const Tape& tape : make_tapes(record(algorithm, size, 8))) {
        touched += traffic_of(tape).reads + traffic_of(tape).writes;
        chunks = tape.chunks;
      }
      CHECK_EQ(touched, (6 * size - (algorithm == Algorithm::ring ? 4 : 3)) * chunks);
    }
}

TEST("a schedule that cannot be played is refused with a reason") {
  CHECK_THROWS(make_tapes(record(Algorithm::ring, 9, 1)), "1 to 8 ranks: got 9");
  Schedule waits = record(Algorithm::ring, 2, 1);
  waits.ranks[1][0].erase(waits.ranks[1][0].begin());
  CHECK_THROWS(make_tapes(waits), "rank 0 stands at step");
}
