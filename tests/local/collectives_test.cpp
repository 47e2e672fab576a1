// The leaves and the communicator, with ranks as threads: right on every path, the same bits on all ranks, and every
// wrong call an error that leaves the next one working.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include "tests/local/ranks.h"

using namespace ringred;
using check::run_ranks;
using check::small_settings;

namespace {

// Where a rank's array lies. "mixed": in the arena on even ranks only.
enum class Place { arena, private_memory, mixed };

template <class T>
class Array {
 public:
  Array(Communicator& communicator, std::size_t count, Place place) : private_(count) {
    const bool in_arena = place == Place::arena || (place == Place::mixed && communicator.rank() % 2 == 0);
    if (in_arena) block_ = communicator.arena().allocate(count * sizeof(T));
    data_ = in_arena ? reinterpret_cast<T*>(block_->data()) : private_.data();
  }
  T* data() { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  std::byte* bytes() { return reinterpret_cast<std::byte*>(data_); }

 private:
  std::vector<T> private_;
  std::shared_ptr<Arena::Block> block_;
  T* data_;
};

Call allreduce_call(DType dtype, Op op, const std::vector<std::int64_t>& shape, std::string_view tag = {}) {
  return {CallKind::allreduce, op, dtype, -1, shape, tag};
}

// Sizes around the line (40 bytes), the one-shot slot (128), a staging slot (1024) and many of these, for 4-byte
// elements.
std::vector<std::size_t> counts_for(int size) {
  const auto n = static_cast<std::size_t>(size);
  return {0, 1, n - 1, n, n + 1, 10, 11, 31, 32, 33, 97, 255, 256, 257, 509, 769, 1024, 2003, 4999};
}

float element(int rank, std::size_t i, int round) {
  return static_cast<float>((static_cast<int>(i) * 7 + rank * 13 + round) % 1000) / 7.0f;
}

void sum_and_compare(Communicator& communicator, std::size_t count, Place place, int round, check::RandomDelay& delay) {
  Array<float> array(communicator, count, place);
  for (std::size_t i = 0; i < count; ++i) array[i] = element(communicator.rank(), i, round);
  const std::vector<std::int64_t> shape{static_cast<std::int64_t>(count)};
  const Call call = allreduce_call(DType::f32, Op::sum, shape);
  delay();
  communicator.run(call, communicator.bind(call, array.bytes(), array.bytes(), count));
  for (std::size_t i = 0; i < count; ++i) {
    float sum = element(0, i, round);  // in rank order: the same bits, not only the same value
    for (int rank = 1; rank < communicator.size(); ++rank) sum += element(rank, i, round);
    CHECK_EQ(array[i], sum);
  }
}

// Small whole numbers, of which every sum is exact in every order: value i + rank, average i + (n - 1) / 2.
void play_and_compare(Communicator& communicator, DType dtype, Op op, std::size_t count) {
  const InstructionSet& set = instruction_set("auto");
  const int size = communicator.size();
  std::vector<float> values(count);
  std::vector<std::int32_t> integers(count);
  std::vector<std::uint16_t> halves(count);
  for (std::size_t i = 0; i < count; ++i) {
    integers[i] = static_cast<std::int32_t>(i % 50) * 2 + communicator.rank();
    values[i] = static_cast<float>(integers[i]);
  }
  convert_kernel(set, DType::f32, DType::f16)(values.data(), halves.data(), count);
  auto* bytes =
      dtype == DType::f16 ? reinterpret_cast<std::byte*>(halves.data()) : reinterpret_cast<std::byte*>(integers.data());
  const std::vector<std::int64_t> shape{static_cast<std::int64_t>(count)};
  const Call call = allreduce_call(dtype, op, shape);
  communicator.run(call, communicator.bind(call, bytes, bytes, count));
  convert_kernel(set, DType::f16, DType::f32)(halves.data(), values.data(), count);
  for (std::size_t i = 0; i < count; ++i) {
    const int base = static_cast<int>(i % 50) * 2;
    if (dtype == DType::f16)
      CHECK_EQ(values[i], static_cast<float>(base) + static_cast<float>(size - 1) / 2);
    else
      CHECK_EQ(integers[i], base * size + size * (size - 1) / 2);
  }
}

// A kernel that pauses at random, so that ranks come to each phase in every order.
void delaying_kernel(const void* const* inputs, int input_count, void* const* outputs, int output_count,
                     std::size_t count, std::int64_t divisor) {
  thread_local check::RandomDelay delay(static_cast<int>(std::hash<std::thread::id>()(std::this_thread::get_id())));
  delay();
  reduce_kernel(instruction_set("auto"), DType::i32, Op::sum)(inputs, input_count, outputs, output_count, count,
                                                              divisor);
  delay();
}

}  // namespace

TEST("sums are right and the same bits on all ranks, on every path") {
  for (int size = 1; size <= 9; ++size)
    run_ranks(size, small_settings(), [&](Communicator& communicator) {
      check::RandomDelay delay(communicator.rank());
      for (const Place place : {Place::arena, Place::private_memory, Place::mixed})
        for (const std::size_t count : counts_for(size)) sum_and_compare(communicator, count, place, 0, delay);
    });
}

TEST("forced schedules: sums are exact and the same bits on all ranks") {
  for (const AlgorithmInfo& row : algorithm_table)
    for (int size = 1; size <= 6; ++size) {
      Settings settings = small_settings();
      settings.algorithm = row.name;
      run_ranks(size, settings, [&](Communicator& communicator) {
        for (const std::size_t count : counts_for(size))
          for (const auto& [dtype, op] : {std::pair{DType::i32, Op::sum}, std::pair{DType::f16, Op::average}})
            play_and_compare(communicator, dtype, op, count);
      });
    }
}

TEST("many calls of changing size and place in a row") {
  for (const int size : {2, 3, 5})
    run_ranks(size, small_settings(), [&](Communicator& communicator) {
      std::mt19937 same_on_all_ranks(5);
      check::RandomDelay delay(communicator.rank() + 100);
      for (int round = 0; round < 400; ++round) {
        const std::size_t count = same_on_all_ranks() % (round % 3 == 0 ? 3000 : 60);
        sum_and_compare(communicator, count, static_cast<Place>(same_on_all_ranks() % 3), round, delay);
      }
    });
}

TEST("delays between the phases") {
  for (const int size : {2, 4})
    run_ranks(size, small_settings(), [&](Communicator& communicator) {
      for (int round = 0; round < 60; ++round) {
        const auto count = static_cast<std::size_t>(200 + 97 * (round % 13));
        Array<int> array(communicator, count, static_cast<Place>(round % 3));
        for (std::size_t i = 0; i < count; ++i) array[i] = static_cast<int>(i) + round * communicator.rank();
        const std::vector<std::int64_t> shape{static_cast<std::int64_t>(count)};
        const Call call = allreduce_call(DType::i32, Op::sum, shape);
        Reduction reduction = communicator.bind(call, array.bytes(), array.bytes(), count);
        reduction.kernel = delaying_kernel;
        communicator.run(call, reduction);
        for (std::size_t i = 0; i < count; ++i)
          CHECK_EQ(array[i], static_cast<int>(i) * size + round * size * (size - 1) / 2);
      }
    });
}

TEST("from one array into another") {
  run_ranks(3, small_settings(), [&](Communicator& communicator) {
    for (const Place from : {Place::arena, Place::private_memory})
      for (const Place to : {Place::arena, Place::private_memory})
        for (const std::size_t count : {5u, 30u, 1000u}) {
          Array<double> input(communicator, count, from), output(communicator, count, to);
          for (std::size_t i = 0; i < count; ++i) input[i] = static_cast<double>(i);
          const std::vector<std::int64_t> shape{static_cast<std::int64_t>(count)};
          const Call call = allreduce_call(DType::f64, Op::average, shape);
          communicator.run(call, communicator.bind(call, input.bytes(), output.bytes(), count));
          for (std::size_t i = 0; i < count; ++i) {
            CHECK_EQ(output[i], static_cast<double>(i));
            CHECK_EQ(input[i], static_cast<double>(i));
          }
        }
  });
}

TEST("broadcast from every root, small, staged and direct") {
  for (const int size : {1, 2, 3, 5})
    run_ranks(size, small_settings(), [&](Communicator& communicator) {
      check::RandomDelay delay(communicator.rank());
      for (int root = 0; root < size; ++root)
        for (const Place place : {Place::arena, Place::private_memory, Place::mixed})
          for (const std::size_t count : {0u, 3u, 30u, 257u, 5000u}) {
            Array<int> array(communicator, count, place);
            for (std::size_t i = 0; i < count; ++i) array[i] = communicator.rank() * 10000 + static_cast<int>(i);
            const std::vector<std::int64_t> shape{static_cast<std::int64_t>(count)};
            delay();
            communicator.broadcast({CallKind::broadcast, Op::sum, DType::i32, root, shape, {}}, array.bytes(),
                                   count * 4);
            for (std::size_t i = 0; i < count; ++i) CHECK_EQ(array[i], root * 10000 + static_cast<int>(i));
          }
    });
}

TEST("barriers hold everyone back") {
  std::atomic<int> arrived{0};
  run_ranks(4, small_settings(), [&](Communicator& communicator) {
    check::RandomDelay delay(communicator.rank());
    for (int round = 1; round <= 200; ++round) {
      delay();
      ++arrived;
      communicator.barrier();
      CHECK(arrived >= 4 * round);
    }
  });
}

TEST("a mismatch is raised on all ranks with all values, changes nothing, and the next call works") {
  run_ranks(3, small_settings(), [](Communicator& communicator) {
    const int rank = communicator.rank();
    check::RandomDelay delay(rank);
    for (int round = 0; round < 20; ++round)
      for (const std::size_t count : {2u, 25u, 2000u}) {
        const std::vector<std::int64_t> shape{static_cast<std::int64_t>(count), rank == 1 ? 2 : 1};
        std::vector<float> data(count * 2, 1.0f);
        auto* bytes = reinterpret_cast<std::byte*>(data.data());
        const Call call = allreduce_call(DType::f32, Op::sum, shape);
        const std::string extent = std::to_string(count);
        CHECK_THROWS(
            communicator.run(call, communicator.bind(call, bytes, bytes, count * static_cast<std::size_t>(shape[1]))),
            "ranks 0, 2 called allreduce(op=Sum, dtype=float32, shape=[" + extent +
                ", 1]); rank 1 called allreduce(op=Sum, dtype=float32, shape=[" + extent + ", 2])");
        CHECK_EQ(data[0], 1.0f);
        sum_and_compare(communicator, count, Place::private_memory, round, delay);
      }
  });
}

TEST("different calls, operators, dtypes, roots and tags are mismatches too") {
  run_ranks(2, small_settings(), [](Communicator& communicator) {
    const bool first = communicator.rank() == 0;
    std::int32_t data[4] = {};
    auto* bytes = reinterpret_cast<std::byte*>(data);
    const std::vector<std::int64_t> shape{4};
    const auto reduce = [&](DType dtype, Op op, std::string_view tag) {
      const Call call = allreduce_call(dtype, op, shape, tag);
      communicator.run(call, communicator.bind(call, bytes, bytes, 4));
    };
    CHECK_THROWS(first ? communicator.barrier() : reduce(DType::i32, Op::sum, ""),
                 "rank 0 called barrier(); rank 1 called allreduce");
    CHECK_THROWS(reduce(DType::i32, first ? Op::sum : Op::max, ""), "op=Max");
    CHECK_THROWS(reduce(first ? DType::i32 : DType::f32, Op::sum, ""), "dtype=float32");
    CHECK_THROWS(reduce(DType::i32, Op::sum, first ? "weight" : "bias"), "tag='bias'");
    CHECK_THROWS(
        communicator.broadcast({CallKind::broadcast, Op::sum, DType::i32, first ? 0 : 1, shape, {}}, bytes, 16),
        "root_rank=1");
    communicator.barrier();
  });
}

TEST("calls that differ in any one thing have different fingerprints") {
  const std::vector<std::int64_t> shapes[] = {{}, {8}, {8, 49}, {49, 8}, {100}, {100, 49}};
  std::vector<std::uint64_t> seen;
  for (const CallKind kind : {CallKind::broadcast, CallKind::allreduce})
    for (const DTypeInfo& dtype : dtype_table)
      for (const Op op : {Op::sum, Op::average, Op::max})
        for (const int root : {-1, 0, 1})
          for (const auto& shape : shapes)
            for (const char* tag : {"", "1", "11", "a"})
              seen.push_back(Call{kind, op, dtype.dtype, root, shape, tag}.fingerprint());
  std::sort(seen.begin(), seen.end());
  CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
}

TEST("a late rank neither reads nor writes the array of one that gave up") {
  for (const bool broadcasts : {false, true}) {
    Settings settings = small_settings();
    settings.timeout_seconds = 0.3;
    std::atomic<bool> changed{false};
    run_ranks(2, settings, [&](Communicator& communicator) {
      Array<float> array(communicator, 5000, Place::arena);
      std::fill_n(array.data(), 5000, 1.0f);
      const std::vector<std::int64_t> shape{5000};
      const auto call = [&] {
        const Call reduce = allreduce_call(DType::f32, Op::sum, shape);
        if (broadcasts)
          communicator.broadcast({CallKind::broadcast, Op::sum, DType::f32, 0, shape, {}}, array.bytes(), 20000);
        else
          communicator.run(reduce, communicator.bind(reduce, array.bytes(), array.bytes(), 5000));
      };
      if (communicator.rank() == 0) {
        CHECK_THROWS(call(), "RINGRED_TIMEOUT_SECONDS=0.3");
        std::fill_n(array.data(), 5000, 7.0f);
        changed = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        for (std::size_t i = 0; i < 5000; ++i) CHECK_EQ(array[i], 7.0f);
      } else {
        while (!changed) std::this_thread::sleep_for(std::chrono::milliseconds(10));
        CHECK_THROWS(call(), "rank 0 broke off");
      }
    });
  }
}

TEST("leaving in the middle of a call breaks it off for all") {
  run_ranks(3, small_settings(), [](Communicator& communicator) {
    if (communicator.rank() == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(400));
      communicator.barrier();  // the others had announced this one
      CHECK_THROWS(communicator.barrier(), "broke off");
      return;
    }
    std::thread second([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (communicator.rank() == 0) CHECK(!communicator.leave("its main thread ended"));
    });
    CHECK_THROWS(communicator.barrier(), "its main thread ended in the middle of a call");
    second.join();
  });
}

TEST("a rank that leaves is missed by those who wait for it") {
  run_ranks(3, small_settings(), [](Communicator& communicator) {
    communicator.barrier();
    if (communicator.rank() == 1) {
      CHECK(communicator.leave("it had enough"));
      return;
    }
    CHECK_THROWS(communicator.barrier(), "it had enough");
    CHECK_THROWS(communicator.barrier(), "broken since an earlier call");
  });
}

TEST("a deadline breaks the communicator on all ranks") {
  Settings settings = small_settings();
  settings.timeout_seconds = 0.3;
  std::atomic<int> gave_up{0};
  run_ranks(3, settings, [&](Communicator& communicator) {
    if (communicator.rank() == 2) {
      while (gave_up < 2) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      communicator.barrier();  // the others had announced this one before they gave up
      CHECK_THROWS(communicator.barrier(), "broke off");
      return;
    }
    CHECK_THROWS(communicator.barrier(), "rank 2");
    ++gave_up;
  });
}

TEST("two threads in one communicator get a usage error that names both calls") {
  run_ranks(2, small_settings(), [](Communicator& communicator) {
    communicator.barrier();
    if (communicator.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      return communicator.barrier();
    }
    std::thread second([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      CHECK_THROWS(communicator.barrier(), "calls barrier while another is in barrier");
    });
    communicator.barrier();
    second.join();
  });
}

TEST("wrong roots and calls after the end are usage errors") {
  run_ranks(1, small_settings(), [](Communicator& communicator) {
    CHECK_THROWS(communicator.broadcast({CallKind::broadcast, Op::sum, DType::u8, 1, {}, {}}, nullptr, 0),
                 "0 to 0: it is 1");
    communicator.leave("the end");
    CHECK_THROWS(communicator.barrier(), "ended with shutdown()");
    communicator.abandon();
    CHECK_THROWS(communicator.barrier(), "was forked");
  });
}
