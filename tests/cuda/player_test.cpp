// The device's player: every algorithm on virtual ranks, in one cooperative launch for each call.
#include "csrc/cuda/player.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/cuda/device_tape.h"
#include "csrc/cuda/launch.h"
#include "csrc/cuda/mail.h"
#include "tests/cuda/device.h"
#include "tests/cuda/rank_values.h"
#include "tests/cuda/side_by_side.h"

namespace ringred::cuda {
namespace {

struct Style {
  Carrier carrier = Carrier::vectors;
  int stripes = 1;
  unsigned threads = 32;
};

// Ranks 0..size-1 on one device, and what they need to play any of some schedules.
class Band {
 public:
  static constexpr int stripes = 2;

  Band(std::vector<Schedule> schedules, int slots, std::size_t slot_bytes) : schedules_(std::move(schedules)) {
    const Wiring wiring(schedules_);
    shape_ = {wiring.size(), wiring.lanes(), wiring.inboxes(), stripes, slots, slot_bytes, slot_bytes};
    for (int rank = 0; rank < size(); ++rank) mail_.emplace_back(std::vector<std::byte>(shape_.bytes()));
    for (const Schedule& schedule : schedules_)
      for (const Tape& tape : make_tapes(schedule)) tapes_.emplace_back(tape, wiring, stripes);
    check(cudaHostAlloc(&reports_, sizeof(Report) * most_ranks, cudaHostAllocMapped), "allocate reports");
    std::fill_n(reports_, most_ranks, Report{});
  }
  ~Band() { static_cast<void>(cudaFreeHost(reports_)); }

  int size() const { return shape_.size; }
  std::size_t schedules() const { return schedules_.size(); }
  const Schedule& schedule(std::size_t number) const { return schedules_[number]; }
  const MailShape& shape() const { return shape_; }
  const Report& report(int rank) const { return reports_[rank]; }

  Performance performance(std::size_t schedule, const Style& style) {
    Performance call;
    call.seat_count = size();
    call.shape = shape_;
    call.carrier = style.carrier;
    call.stripes = style.stripes;
    call.threads = style.threads;
    call.patience = clock_ticks(30);
    for (int rank = 0; rank < size(); ++rank) {
      Seat& seat = call.seats[rank];
      seat.rank = rank;
      for (int peer = 0; peer < size(); ++peer) seat.mail[peer] = mail_[static_cast<std::size_t>(peer)].data();
      check(cudaHostGetDevicePointer(&seat.report, reports_ + rank, 0), "map a report");
      seat.tape = tapes_[schedule * static_cast<std::size_t>(size()) + static_cast<std::size_t>(rank)].view();
    }
    return call;
  }

  template <class T>
  void play_and_check(std::size_t schedule, std::size_t count, Op op, const Style& style, unsigned seed) {
    const Values<T> inputs = make_values<T>(size(), count, op, seed);
    std::vector<DeviceArray<T>> buffers;
    for (const std::vector<T>& input : inputs) buffers.emplace_back(input);
    Performance call = performance(schedule, style);
    call.count = count;
    call.dtype = Kind<T>::dtype;
    call.op = op;
    for (int rank = 0; rank < size(); ++rank) call.seats[rank].data = buffers[static_cast<std::size_t>(rank)].data();
    play(call, nullptr);
    finish();
    for (int rank = 0; rank < size(); ++rank) CHECK_EQ(describe(reports_[rank]), std::string());
    Values<T> results;
    for (const DeviceArray<T>& buffer : buffers) results.push_back(buffer.read());
    check_results<T>(inputs, results, op, size() - 1);
  }

  // A launch for each rank; each looks at its result as soon as its own kernel has ended.
  void play_side_by_side(std::size_t schedule, std::size_t count, const Style& style, unsigned seed) {
    const Values<float> inputs = make_values<float>(size(), count, Op::sum, seed);
    std::vector<DeviceArray<float>> buffers;
    for (const std::vector<float>& input : inputs) buffers.emplace_back(input);
    const Performance all = performance(schedule, style);
    Values<float> results(inputs.size());
    side_by_side(
        size(),
        [&](int rank, cudaStream_t stream) {
          Performance call = all;
          call.seats[0] = all.seats[rank];
          call.seats[0].data = buffers[static_cast<std::size_t>(rank)].data();
          call.seat_count = 1;
          call.count = count;
          play(call, stream);
        },
        [&](int rank) { results[static_cast<std::size_t>(rank)] = buffers[static_cast<std::size_t>(rank)].read(); });
    check_results<float>(inputs, results, Op::sum, size() - 1);
  }

  // As after a call that reported.
  void forget() {
    for (DeviceArray<std::byte>& mail : mail_) mail.write(std::vector<std::byte>(shape_.bytes()));
    for (TapeMemory& tape : tapes_) tape.forget_progress();
    std::fill_n(reports_, most_ranks, Report{});
  }

 private:
  std::vector<Schedule> schedules_;
  MailShape shape_;
  std::vector<DeviceArray<std::byte>> mail_;
  std::vector<TapeMemory> tapes_;  // by schedule, rank
  Report* reports_ = nullptr;
};

std::vector<Schedule> all_algorithms(int size) {
  std::vector<Schedule> schedules;
  for (const AlgorithmInfo& row : algorithm_table) schedules.push_back(record(row.algorithm, size, 3));
  return schedules;
}

// Of int64: units of 16 bytes are where geometry changes. ThreadSanitizer, which slows an emulated thread down a
// hundredfold, gets those in which everything happens.
std::vector<std::size_t> interesting_counts(int size) {
  const auto ranks = static_cast<std::size_t>(size);
  if (check::sanitized) return {ranks + 1, 257};
  return {0, 1, ranks - 1, ranks, ranks + 1, 2 * ranks - 1, 2 * ranks + 1, 97, 509};
}

template <class T>
void play_all(int size, Op op, std::size_t slot_bytes, Carrier carrier, const std::vector<std::size_t>& counts) {
  Band band(all_algorithms(size), 2, slot_bytes);
  unsigned seed = 0;
  for (std::size_t count : counts)
    for (std::size_t schedule = 0; schedule < band.schedules(); ++schedule, ++seed)
      band.play_and_check<T>(schedule, count, op, {carrier, 1 + static_cast<int>(seed % 2), 32}, seed);
}

}  // namespace

TEST("sums of integers are exact: every algorithm, 2 to 8 ranks, every count, many messages") {
  for (int size = 2; size <= (check::sanitized ? 4 : 8); ++size)
    play_all<std::int64_t>(size, Op::sum, 256, Carrier::vectors, interesting_counts(size));
}

TEST("as packets too") {
  for (int size : {2, check::sanitized ? 3 : 8})
    play_all<std::int64_t>(size, Op::sum, 128, Carrier::packets, interesting_counts(size));
}

TEST("halves, floats and doubles: the same bits everywhere, and close to the reference") {
  for (Carrier carrier : {Carrier::vectors, Carrier::packets}) {
    play_all<__half>(4, Op::average, 256, carrier, {11, 509});
    if (check::sanitized) continue;
    play_all<float>(3, Op::sum, 256, carrier, {11, 509});
    play_all<__nv_bfloat16>(5, Op::sum, 256, carrier, {11, 509});
    play_all<double>(3, Op::average, 256, carrier, {11, 509});
    play_all<std::int32_t>(2, Op::sum, 256, carrier, {11, 509});
  }
}

TEST("averages, minima, maxima and products") {
  for (Op op : {Op::average, Op::min, Op::max, Op::product}) {
    if (check::sanitized && op != Op::min) continue;
    play_all<float>(3, op, 512, Carrier::vectors, {11, 509});
    play_all<std::int64_t>(4, op, 512, Carrier::packets, {11, 509});
  }
}

TEST("messages so long that every thread has several units in flight, and parts of windows and units at the end") {
  Band band(all_algorithms(3), 2, 4096);
  for (std::size_t schedule = 0; schedule < band.schedules(); ++schedule)
    for (std::size_t count : {std::size_t{3072}, std::size_t{5003}})
      band.play_and_check<float>(schedule, count, Op::sum, {Carrier::vectors, 1, 32}, 3);
  band.play_and_check<__half>(1, 9999, Op::average, {Carrier::vectors, 2, 32}, 4);
  band.play_and_check<__nv_bfloat16>(0, 9999, Op::max, {Carrier::vectors, 1, 64}, 5);
}

TEST("calls of any schedule, length, carrier and number of stripes may follow one another") {
  const int size = 4;
  std::vector<Schedule> schedules = all_algorithms(size);
  schedules.push_back(record_hierarchical(size, 2));
  schedules.push_back(record_two_level(size, 2, Algorithm::ring, 1));
  Band band(std::move(schedules), 2, 128);
  std::minstd_rand random(7);
  for (unsigned call = 0; call < (check::sanitized ? 20 : 80); ++call) {
    const Style style{random() % 2 == 0 ? Carrier::vectors : Carrier::packets, 1 + static_cast<int>(random() % 2),
                      32 * (1 + static_cast<unsigned>(random() % 2))};
    band.play_and_check<float>(random() % band.schedules(), random() % 700, Op::sum, style, call);
  }
}

TEST("ranks that launch for themselves have the whole result when their own kernel has ended") {
  Band band(all_algorithms(3), 2, 128);
  for (Carrier carrier : {Carrier::vectors, Carrier::packets})
    for (std::size_t schedule = 0; schedule < band.schedules(); ++schedule) {
      const Style style{carrier, 2, 32};
      band.play_and_check<float>(schedule, 300, Op::sum, style, 1);
      for (unsigned call = 0; call < (check::sanitized ? 1 : 3); ++call)
        band.play_side_by_side(schedule, 300 + call, style, call);
    }
}

TEST("a peer that never comes: every rank ends, and the reports lead to it") {
  Band band(all_algorithms(3), 2, 128);
  for (Carrier carrier : {Carrier::vectors, Carrier::packets}) {
    Performance call = band.performance(0, {carrier, 2, 32});
    std::vector<DeviceArray<float>> buffers;
    for (int rank = 0; rank < 2; ++rank) {  // rank 2 is not among them
      buffers.emplace_back(std::vector<float>(1000, 1));
      call.seats[rank].data = buffers.back().data();
    }
    call.seat_count = 2;
    call.count = 1000;
    call.patience = clock_ticks(0.05);
    play(call, nullptr);
    finish();
    CHECK_EQ(static_cast<int>(band.report(0).taken), 2);
    CHECK_EQ(static_cast<int>(band.report(1).taken), 2);
    CHECK_EQ(static_cast<int>(band.report(2).taken), 0);
    const std::string text = describe(band.report(0));
    const std::string awaited = carrier == Carrier::vectors ? "a message from rank 2" : "packets from rank 2";
    CHECK_EQ(text.substr(0, text.find(" (")), "the device of rank 0 waited too long for " + awaited);
    CHECK(text.find(" (lane 0, move 1, stripe ") != std::string::npos);
    CHECK(text.ends_with("expected number 1, saw 0"));
    band.forget();
    band.play_and_check<float>(0, 1000, Op::sum, {carrier, 2, 32}, 1);
  }
}

TEST("a call that cannot be played is refused with a reason") {
  Band band(all_algorithms(2), 2, 32);
  Performance call = band.performance(0, {});
  call.count = 1;
  call.dtype = DType::u8;
  CHECK_THROWS(play(call, nullptr), "float16, bfloat16, float32, float64, int32 and int64: got uint8");
  call.dtype = DType::i32;
  call.op = Op::average;
  CHECK_THROWS(play(call, nullptr), "take int64, or a leaf");
  call.op = Op::sum;
  call.seats[1].data = reinterpret_cast<void*>(8);
  CHECK_THROWS(play(call, nullptr), "aligned to 16 bytes: rank 1's is not");
  call.stripes = 3;
  CHECK_THROWS(play(call, nullptr), "1 to 2 stripes: got 2 and 3");
  call.stripes = 1;
  call.threads = 48;
  CHECK_THROWS(play(call, nullptr), "512 threads: got 48");
  call.threads = 32;
  call.shape.slots = 3;
  CHECK_THROWS(play(call, nullptr), "2, 4, 8, ... slots");
  CHECK(most_stripes(DType::f32, 1, 1, 256) >= 2 * most_stripes(DType::f32, 2, 1, 256));
  CHECK(most_stripes(DType::f32, 2, 1, 256) >= 1);
  CHECK_THROWS(Wiring({record(Algorithm::ring, 2, 1), record(Algorithm::ring, 3, 1)}), "got 2 and 3");
}

}  // namespace ringred::cuda
