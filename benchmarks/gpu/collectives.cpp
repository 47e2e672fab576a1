// Allreduce on virtual ranks of this device: leaves, and schedules through the player, over the settings that there are
// to choose from.
#include <algorithm>

#include "benchmarks/gpu/session.h"
#include "benchmarks/gpu/values.h"
#include "csrc/algorithms/algorithms.h"
#include "csrc/base/round.h"
#include "csrc/cuda/device_tape.h"
#include "csrc/cuda/launch.h"
#include "csrc/cuda/leaf.h"
#include "csrc/cuda/player.h"
#include "csrc/reduce/reduce.h"

namespace ringred::cuda {
namespace {

// Each rank's vector, and the average that all of them must become: which is a fixed point, so that any number of calls
// gives the same bits, and no value grows.
class Vectors {
 public:
  Vectors(const Session& session, std::size_t bytes) : session_(session), bytes_(bytes) {
    std::vector<std::vector<float>> host;
    std::vector<const void*> addresses;
    const int ranks = session.plan().ranks;
    for (int rank = 0; rank < ranks; ++rank) host.push_back(values(bytes / sizeof(float), static_cast<unsigned>(rank)));
    for (const std::vector<float>& vector : host) {
      inputs_.push_back(on_device(vector));
      buffers_.emplace_back(vector.size());
      addresses.push_back(vector.data());
    }
    std::vector<float> average(host[0].size());
    void* place = average.data();
    reduce_kernel(instruction_set("auto"), DType::f32, Op::average)(addresses.data(), ranks, &place, 1, average.size(),
                                                                    ranks);
    expected_.push_back(on_device(average));
  }

  std::size_t bytes() const { return bytes_; }
  std::size_t count() const { return bytes_ / sizeof(float); }
  float* buffer(int rank) const { return buffers_[static_cast<std::size_t>(rank)].data(); }

  void reset() const {
    for (std::size_t rank = 0; rank < inputs_.size(); ++rank)
      copy_on_device(buffers_[rank].data(), inputs_[rank].data(), bytes_, session_.stream());
  }
  void check_all(const std::string& name) const {
    for (const DeviceTable<float>& buffer : buffers_)
      check_equal(buffer.data(), expected_[0].data(), bytes_, session_.stream(), name);
  }

 private:
  const Session& session_;
  std::size_t bytes_;
  std::vector<DeviceTable<float>> inputs_, buffers_, expected_;  // expected_: one
};

// A setting's memory, a region for each rank: zeroed, and seen by all.
class Regions {
 public:
  Regions(const Session& session, std::size_t bytes) {
    for (int rank = 0; rank < session.plan().ranks; ++rank) {
      regions_.emplace_back(bytes);
      check(cudaMemsetAsync(regions_.back().data(), 0, bytes, session.stream()), "clear a rank's memory");
    }
  }
  std::byte* of(int rank) const { return regions_[static_cast<std::size_t>(rank)].data(); }

 private:
  std::vector<DeviceTable<std::byte>> regions_;
};

// Where kernels report that they waited too long.
class Reports {
 public:
  Reports() {
    check(cudaHostAlloc(&reports_, sizeof(Report) * most_ranks, cudaHostAllocMapped), "allocate reports");
    std::fill_n(reports_, most_ranks, Report{});
  }
  Reports(const Reports&) = delete;
  ~Reports() { static_cast<void>(cudaFreeHost(reports_)); }

  Report* of(int rank) const {
    Report* report = nullptr;
    check(cudaHostGetDevicePointer(&report, reports_ + rank, 0), "map a report");
    return report;
  }
  void check_none() const {
    for (int rank = 0; rank < most_ranks; ++rank)
      if (const std::string text = describe(reports_[rank]); !text.empty()) fail_system(text + ".");
  }

 private:
  Report* reports_ = nullptr;
};

// `call` in one setting: once to be compared, then to be timed, then compared again.
template <class Call>
Times checked_time(const Session& session, const Vectors& vectors, const Reports& reports, const std::string& name,
                   bool in_graph, const Call& call) {
  const auto check_results = [&] {
    session.finish();
    reports.check_none();
    vectors.check_all(name);
  };
  vectors.reset();
  call();
  check_results();
  const Times times = in_graph ? session.time_in_graph(call) : session.time(call);
  check_results();
  return times;
}

// `most`, and halves of it down to an eighth; of short vectors, which few blocks may move faster, down to 1.
std::vector<int> halvings(int most, bool is_short) {
  std::vector<int> numbers;
  for (int number = most; number >= 1 && (is_short || 8 * number >= most); number /= 2) numbers.push_back(number);
  return numbers;
}

// A block has at least 512 bytes.
int most_useful(const Session& session, std::size_t bytes, int most) {
  const auto useful = static_cast<int>(std::min<std::size_t>(bytes / 512 + 1, 1 << 20));
  return std::max(1, std::min({useful, most, session.plan().most_blocks}));
}

std::string size_text(std::size_t bytes) {
  if (bytes % (1 << 20) == 0) return std::to_string(bytes >> 20) + " MiB";
  return bytes % (1 << 10) == 0 ? std::to_string(bytes >> 10) + " KiB" : std::to_string(bytes) + " B";
}

std::string name_of(const Session& session, const std::string& what, std::size_t bytes) {
  return what + ", " + std::to_string(session.plan().ranks) + " ranks of " + size_text(bytes);
}

// What all ranks read and write: see the table in docs/gpu.md.
double leaf_bytes(Leaf leaf, int ranks, std::size_t bytes) {
  const double n = ranks, vector = static_cast<double>(bytes);
  if (leaf == Leaf::two_shot) return 2 * n * vector;
  return leaf == Leaf::one_shot ? n * (n + 3) * vector : n * (4 * (n - 1) + 3) * vector;
}

Trial try_leaf(const Session& session, const Vectors& vectors, Leaf leaf, int blocks, unsigned threads, bool is_short) {
  const int ranks = session.plan().ranks;
  const std::size_t share = round_up(divide_up(vectors.bytes(), static_cast<std::size_t>(blocks)), unit_bytes);
  LeafCall call;
  call.shape = {ranks, blocks, leaf == Leaf::one_shot ? share : 0, leaf == Leaf::packets ? share : 0};
  const Regions memory(session, call.shape.bytes());
  const Reports reports;
  call.seat_count = ranks;
  for (int rank = 0; rank < ranks; ++rank) {
    call.seats[rank].rank = rank;
    call.seats[rank].report = reports.of(rank);
    for (int peer = 0; peer < ranks; ++peer) {
      call.seats[rank].buffers[peer] = vectors.buffer(peer);
      call.seats[rank].memory[peer] = memory.of(peer);
    }
  }
  call.count = vectors.count();
  call.op = Op::average;
  call.blocks = blocks;
  call.threads = threads;
  call.patience = clock_ticks(session.plan().patience_seconds);
  const std::string setting = std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads a rank";
  return {setting,
          checked_time(session, vectors, reports, setting, is_short, [&] { allreduce(leaf, call, session.stream()); })};
}

void time_leaf(Session& session, const Vectors& vectors, Leaf leaf, const std::string& name, Goal goal, bool is_short) {
  const int ranks = session.plan().ranks;
  Figure figure{name_of(session, name, vectors.bytes()), leaf_bytes(leaf, ranks, vectors.bytes()), goal, {}};
  for (const unsigned threads : session.plan().threads) {
    const int most = most_useful(session, vectors.bytes(), most_blocks(leaf, DType::f32, ranks, threads));
    for (const int blocks : halvings(most, is_short))
      figure.trials.push_back(try_leaf(session, vectors, leaf, blocks, threads, is_short));
  }
  session.add(std::move(figure));
}

struct Style {
  Carrier carrier;
  int slots;
  std::size_t slot_bytes;
  int stripes;
  unsigned threads;
};

std::string text_of(const Style& style, const Schedule& schedule) {
  return std::to_string(style.stripes) + " stripes, " + std::to_string(style.threads) + " threads, " +
         std::to_string(style.slots) + " slots of " + size_text(style.slot_bytes) + ", " +
         std::to_string(schedule.chunks) + " chunks";
}

Trial try_schedule(const Session& session, const Vectors& vectors, const Schedule& schedule, const Style& style,
                   bool is_short) {
  const int ranks = session.plan().ranks;
  const Wiring wiring({schedule});
  const std::vector<Tape> tapes = make_tapes(schedule);
  const bool packets = style.carrier == Carrier::packets;
  const std::size_t unused = unit_bytes;
  Performance call;
  call.shape = {ranks,
                wiring.lanes(),
                wiring.inboxes(),
                style.stripes,
                style.slots,
                packets ? unused : style.slot_bytes,
                packets ? style.slot_bytes : unused};
  const Regions mail(session, call.shape.bytes());
  const Reports reports;
  std::vector<TapeMemory> memories;
  for (const Tape& tape : tapes) memories.emplace_back(tape, wiring, style.stripes);
  call.seat_count = ranks;
  for (int rank = 0; rank < ranks; ++rank) {
    Seat& seat = call.seats[rank];
    seat.rank = rank;
    seat.data = vectors.buffer(rank);
    seat.report = reports.of(rank);
    seat.tape = memories[static_cast<std::size_t>(rank)].view();
    for (int peer = 0; peer < ranks; ++peer) seat.mail[peer] = mail.of(peer);
  }
  call.count = vectors.count();
  call.op = Op::average;
  call.carrier = style.carrier;
  call.stripes = style.stripes;
  call.threads = style.threads;
  call.patience = clock_ticks(session.plan().patience_seconds);
  const std::string setting = text_of(style, schedule);
  return {setting, checked_time(session, vectors, reports, schedule.algorithm + ", " + setting, is_short,
                                [&] { play(call, session.stream()); })};
}

// What all ranks read and write by their tapes.
double schedule_bytes(const Schedule& schedule, std::size_t bytes) {
  double chunks = 0;
  for (const Tape& tape : make_tapes(schedule)) {
    const Traffic traffic = traffic_of(tape);
    chunks += traffic.reads + traffic.writes;
  }
  return chunks / schedule.chunks * static_cast<double>(bytes);
}

// Long vectors in slots of several sizes; short ones, as packets, in one slot that is large enough.
std::vector<Style> styles(const Session& session, std::size_t bytes, int lanes, bool is_short) {
  const Plan& plan = session.plan();
  std::vector<Style> styles;
  for (const unsigned threads : plan.threads) {
    const int most = most_useful(session, bytes, most_stripes(DType::f32, plan.ranks, lanes, threads));
    for (const int stripes : halvings(most, is_short))
      if (is_short)
        styles.push_back({Carrier::packets, plan.slots.front(), plan.slot_bytes.front(), stripes, threads});
      else
        for (const int slots : plan.slots)
          for (const std::size_t slot_bytes : plan.slot_bytes)
            styles.push_back({Carrier::vectors, slots, slot_bytes, stripes, threads});
  }
  return styles;
}

void time_schedule(Session& session, const Vectors& vectors, Algorithm algorithm, Goal goal, bool is_short) {
  const std::string name = std::string(info(algorithm).name) + (is_short ? " as packets" : "");
  Figure figure{name_of(session, name, vectors.bytes()), 0, goal, {}};
  for (const int pipeline : algorithm == Algorithm::double_tree ? std::vector<int>{2, 8} : std::vector<int>{1}) {
    const Schedule schedule = record(algorithm, session.plan().ranks, pipeline);
    figure.bytes = schedule_bytes(schedule, vectors.bytes());
    const int lanes = make_tapes(schedule)[0].lanes();
    for (const Style& style : styles(session, vectors.bytes(), lanes, is_short))
      figure.trials.push_back(try_schedule(session, vectors, schedule, style, is_short));
  }
  session.add(std::move(figure));
}

}  // namespace

void time_leaves(Session& session) {
  for (const std::size_t bytes : session.plan().small_bytes) {
    const Vectors vectors(session, bytes);
    const Goal goal = bytes == 8 << 10 ? Goal{.seconds = 8e-6} : Goal{};
    session.attempt([&] {
      if (bytes <= 64 << 10) time_leaf(session, vectors, Leaf::packets, "packets", goal, true);
    });
    session.attempt([&] { time_leaf(session, vectors, Leaf::one_shot, "one_shot", goal, true); });
    session.attempt([&] { time_leaf(session, vectors, Leaf::two_shot, "two_shot", {}, true); });
  }
  const Vectors vectors(session, session.plan().large_bytes);
  session.attempt([&] { time_leaf(session, vectors, Leaf::two_shot, "two_shot", {.share = 0.8}, false); });
}

void time_schedules(Session& session) {
  const Vectors vectors(session, session.plan().large_bytes);
  for (const Algorithm algorithm : {Algorithm::ring, Algorithm::double_tree})
    session.attempt([&] { time_schedule(session, vectors, algorithm, {.share = 0.6}, false); });
  for (const std::size_t bytes : session.plan().small_bytes) {
    if (bytes > 64 << 10) continue;
    const Vectors few(session, bytes);
    for (const Algorithm algorithm : {Algorithm::ring, Algorithm::double_tree})
      session.attempt([&] { time_schedule(session, few, algorithm, {}, true); });
  }
}

}  // namespace ringred::cuda
