// The device's leaves on virtual ranks, in one cooperative launch for each call.
#include "csrc/cuda/leaf.h"

#include <random>
#include <string>
#include <vector>

#include "csrc/cuda/launch.h"
#include "tests/cuda/device.h"
#include "tests/cuda/rank_values.h"
#include "tests/cuda/side_by_side.h"

namespace ringred::cuda {
namespace {

// Ranks 0..size-1 on one device.
class Team {
 public:
  static constexpr int blocks = 3;

  explicit Team(int size, std::size_t share_bytes = 512) : shape_{size, blocks, share_bytes, 128} {
    for (int rank = 0; rank < size; ++rank) memory_.emplace_back(std::vector<std::byte>(shape_.bytes()));
    check(cudaHostAlloc(&reports_, sizeof(Report) * most_ranks, cudaHostAllocMapped), "allocate reports");
    std::fill_n(reports_, most_ranks, Report{});
  }
  ~Team() { static_cast<void>(cudaFreeHost(reports_)); }

  int size() const { return shape_.size; }
  const Report& report(int rank) const { return reports_[rank]; }
  DeviceArray<std::byte>& memory(int rank) { return memory_[static_cast<std::size_t>(rank)]; }
  const LeafShape& shape() const { return shape_; }

  template <class T>
  LeafCall call_on(const std::vector<DeviceArray<T>>& buffers, Op op) {
    LeafCall call;
    call.seat_count = size();
    call.shape = shape_;
    call.count = buffers[0].size();
    call.dtype = Kind<T>::dtype;
    call.op = op;
    call.blocks = blocks;
    call.threads = 32;
    call.patience = clock_ticks(30);
    for (int rank = 0; rank < size(); ++rank) {
      LeafSeat& seat = call.seats[rank];
      seat.rank = rank;
      check(cudaHostGetDevicePointer(&seat.report, reports_ + rank, 0), "map a report");
      for (int peer = 0; peer < size(); ++peer) {
        seat.buffers[peer] = buffers[static_cast<std::size_t>(peer)].data();
        seat.memory[peer] = memory(peer).data();
      }
    }
    return call;
  }

  template <class T>
  void reduce_and_check(Leaf leaf, std::size_t count, Op op, unsigned seed, unsigned threads = 32) {
    const Values<T> inputs = make_values<T>(size(), count, op, seed);
    std::vector<DeviceArray<T>> buffers;
    for (const std::vector<T>& input : inputs) buffers.emplace_back(input);
    LeafCall call = call_on(buffers, op);
    call.threads = threads;
    allreduce(leaf, call, nullptr);
    finish();
    for (int rank = 0; rank < size(); ++rank) CHECK_EQ(describe(reports_[rank]), std::string());
    Values<T> results;
    for (const DeviceArray<T>& buffer : buffers) results.push_back(buffer.read());
    // Halves are rounded once, whatever the number of ranks.
    check_results<T>(inputs, results, op, Kind<T>::precision < 24 ? 1 : size() - 1);
  }

  // Launches for each rank, five in a row, so that a rank may be a call ahead of others; each looks at its result as
  // soon as its own kernels have ended. What a call leaves is what the next one adds: sums stay exact.
  void reduce_side_by_side(Leaf leaf, std::size_t count, unsigned seed) {
    Values<float> inputs = make_values<float>(size(), count, Op::sum, seed);
    std::vector<DeviceArray<float>> buffers;
    for (const std::vector<float>& input : inputs) buffers.emplace_back(input);
    const LeafCall all = call_on(buffers, Op::sum);
    Values<float> results(inputs.size());
    side_by_side(
        size(),
        [&](int rank, cudaStream_t stream) {
          LeafCall call = all;
          call.seats[0] = all.seats[rank];
          call.seat_count = 1;
          for (int repeat = 0; repeat < 5; ++repeat) allreduce(leaf, call, stream);
        },
        [&](int rank) { results[static_cast<std::size_t>(rank)] = buffers[static_cast<std::size_t>(rank)].read(); });
    for (std::vector<float>& input : inputs)
      for (float& value : input) value *= static_cast<float>(std::pow(size(), 4));
    check_results<float>(inputs, results, Op::sum, size() - 1);
  }

  // As after a call that reported.
  void forget() {
    for (DeviceArray<std::byte>& memory : memory_) memory.write(std::vector<std::byte>(shape_.bytes()));
    std::fill_n(reports_, most_ranks, Report{});
  }

 private:
  LeafShape shape_;
  std::vector<DeviceArray<std::byte>> memory_;
  Report* reports_ = nullptr;
};

// The longest vector that the team's memory holds.
std::size_t longest(const Team& team, Leaf leaf, std::size_t element_bytes) {
  if (leaf == Leaf::two_shot) return 1500;
  const std::size_t share = leaf == Leaf::packets ? team.shape().packet_share_bytes : team.shape().share_bytes;
  return share * Team::blocks / element_bytes;
}

constexpr Leaf leaves[] = {Leaf::packets, Leaf::one_shot, Leaf::two_shot};

template <class T>
void reduce_all(int size, Op op) {
  Team team(size);
  const auto ranks = static_cast<std::size_t>(size);
  for (Leaf leaf : leaves) {
    unsigned seed = 0;
    for (std::size_t count : {std::size_t{0}, std::size_t{1}, ranks - 1, ranks, ranks + 1, std::size_t{31},
                              longest(team, leaf, sizeof(T)) - 1, longest(team, leaf, sizeof(T))})
      if (!check::sanitized || count > ranks) team.reduce_and_check<T>(leaf, count, op, seed++);
  }
}

}  // namespace

TEST("sums of integers are exact: every leaf, 2 to 8 ranks, every count") {
  for (int size = 1; size <= (check::sanitized ? 4 : 8); ++size) reduce_all<std::int64_t>(size, Op::sum);
}

TEST("every dtype and operator: the same bits everywhere, and close to the reference") {
  for (Op op : {Op::sum, Op::average, Op::min, Op::max, Op::product}) {
    reduce_all<__half>(3, op);
    if (check::sanitized) continue;
    reduce_all<float>(3, op);
    reduce_all<__nv_bfloat16>(4, op);
    reduce_all<double>(2, op);
    reduce_all<std::int32_t>(3, op);
    reduce_all<std::int64_t>(2, op);
  }
}

TEST("vectors so long that every thread has several units in flight") {
  Team team(3, 4096);
  for (Leaf leaf : {Leaf::one_shot, Leaf::two_shot}) {
    team.reduce_and_check<float>(leaf, 3071, Op::sum, 1);
    team.reduce_and_check<float>(leaf, 2000, Op::min, 2, 64);
    team.reduce_and_check<__half>(leaf, 6143, Op::average, 3);
  }
  team.reduce_and_check<double>(Leaf::two_shot, 10001, Op::average, 4);
}

TEST("calls of any leaf, length and number of threads may follow one another") {
  Team team(4);
  std::minstd_rand random(5);
  for (unsigned call = 0; call < (check::sanitized ? 20 : 200); ++call) {
    const Leaf leaf = leaves[random() % 3];
    const std::size_t count = random() % (longest(team, leaf, sizeof(float)) + 1);
    team.reduce_and_check<float>(leaf, count, Op::sum, call, random() % 2 == 0 ? 32 : 64);
  }
}

TEST("ranks that launch for themselves have the whole result when their own kernel has ended") {
  Team team(3);
  for (unsigned call = 0; call < (check::sanitized ? 3 : 12); ++call)
    for (Leaf leaf : leaves) {
      const std::size_t count = longest(team, leaf, sizeof(float)) - call;
      if (call == 0) team.reduce_and_check<float>(leaf, count, Op::sum, call);
      team.reduce_side_by_side(leaf, count, call);
    }
}

TEST("flags of packets come round after 2^32 calls; a longer call then finds none that were left") {
  Team team(2);
  const std::size_t all = longest(team, Leaf::packets, sizeof(float));
  const auto set_calls = [&](std::uint64_t calls) {
    for (int rank = 0; rank < 2; ++rank)
      for (int block = 0; block < Team::blocks; ++block) {
        std::vector<std::byte> memory = team.memory(rank).read();
        std::memcpy(memory.data() + team.shape().line(block) + offsetof(LeafLine, calls), &calls, sizeof calls);
        team.memory(rank).write(memory);
      }
  };
  // Calls 100 and 101 are long, all others up to 2^32 + 99 short, and the sweeps among them are played.
  set_calls(99);
  for (unsigned seed = 0; seed < 2; ++seed) team.reduce_and_check<float>(Leaf::packets, all, Op::sum, seed);
  for (std::uint64_t quarter = 1; quarter <= 4; ++quarter) {
    set_calls((quarter << 30) - 1);
    for (unsigned seed = 0; seed < 2; ++seed)
      team.reduce_and_check<float>(Leaf::packets, 2 * 32 + 1, Op::sum, seed + 5);
  }
  set_calls((std::uint64_t{1} << 32) + 99);
  for (unsigned seed = 0; seed < 2; ++seed) team.reduce_and_check<float>(Leaf::packets, all, Op::sum, seed + 10);
}

TEST("a peer that never comes: every rank ends, and the reports lead to it") {
  Team team(3);
  const char* const awaited[] = {"packets from rank 2", "rank 2 to begin", "rank 2 to begin"};
  for (Leaf leaf : leaves) {
    std::vector<DeviceArray<float>> buffers;
    for (int rank = 0; rank < 3; ++rank) buffers.emplace_back(std::vector<float>(50, 1));
    LeafCall call = team.call_on(buffers, Op::sum);
    call.seat_count = 2;  // rank 2 is not among them
    call.patience = clock_ticks(0.05);
    allreduce(leaf, call, nullptr);
    finish();
    for (int rank = 0; rank < 2; ++rank) {
      const std::string text = describe(team.report(rank));
      CHECK_EQ(text.substr(0, text.find(" (block ")), "the device of rank " + std::to_string(rank) +
                                                          " waited too long for " + awaited[static_cast<int>(leaf)]);
      CHECK(text.ends_with("expected number 1, saw 0"));
    }
    team.forget();
    team.reduce_and_check<float>(leaf, 50, Op::sum, 1);
  }
}

TEST("a call that cannot be made is refused with a reason") {
  Team team(2);
  std::vector<DeviceArray<float>> buffers;
  for (int rank = 0; rank < 2; ++rank) buffers.emplace_back(std::vector<float>(500, 1));
  LeafCall call = team.call_on(buffers, Op::sum);
  CHECK_THROWS(allreduce(Leaf::packets, call, nullptr), "1 to 3 blocks for a leaf: this call takes 16. Take two_shot");
  call.threads = 33;
  CHECK_THROWS(allreduce(Leaf::two_shot, call, nullptr), "512 threads: got 33");
  call.threads = 32;
  call.seats[0].buffers[1] = static_cast<char*>(call.seats[0].buffers[1]) + 4;
  CHECK_THROWS(allreduce(Leaf::two_shot, call, nullptr), "aligned to 16 bytes: rank 1's is not");
  CHECK(most_blocks(Leaf::two_shot, DType::f32, 2, 256) >= 1);
  call.shape.share_bytes = 24;
  CHECK_THROWS(allreduce(Leaf::one_shot, call, nullptr), "whole number of 16 bytes: got 24");
  call.dtype = DType::boolean;
  CHECK_THROWS(allreduce(Leaf::one_shot, call, nullptr), "int32 and int64: got bool");
}

}  // namespace ringred::cuda
