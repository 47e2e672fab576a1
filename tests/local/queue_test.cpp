// The engine: operations submitted in any order, agreed on, fused and executed. Ranks are threads.
#include <algorithm>
#include <numeric>
#include <random>

#include "tests/local/engines.h"

using namespace ringred;
using namespace ringred::check;

namespace {

std::vector<float> values_of(int rank, std::size_t count, std::size_t seed = 0) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<float>((i * 7 + static_cast<std::size_t>(rank) * 13 + seed) % 101);
  return values;
}

std::vector<float> sum_of(int size, std::size_t count, std::size_t seed = 0) {
  std::vector<float> sum(count);
  for (int rank = 0; rank < size; ++rank) {
    const auto values = values_of(rank, count, seed);
    for (std::size_t i = 0; i < count; ++i) sum[i] += values[i];
  }
  return sum;
}

template <class Number>
bool holds_bytes_of(const Result& result, const std::vector<Number>& values) {
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  return std::equal(result.data.get(), result.data.get() + result.bytes, bytes, bytes + values.size() * sizeof(Number));
}

constexpr std::size_t counts[] = {0, 1, 2, 31, 33, 255, 1000, 1031, 4097, 20011};

}  // namespace

TEST("an allreduce of any size gives the sum on all ranks") {
  for (const int size : {1, 2, 3, 4}) {
    Engines engines(size, small_settings());
    engines.run([&](Engine& engine) {
      for (const std::size_t count : counts) {
        auto values = values_of(engine.rank(), count);
        wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})));
        CHECK(values == sum_of(size, count));
      }
    });
  }
}

TEST("operations are submitted in another order on each rank, with delays, and all are right") {
  for (const int size : {2, 3, 4}) {
    Engines engines(size, small_settings());
    engines.run([&](Engine& engine) {
      RandomDelay delay(engine.rank());
      std::mt19937 random(static_cast<unsigned>(engine.rank()));
      for (int round = 0; round < (sanitized ? 4 : 10); ++round) {
        constexpr std::size_t many = 40;
        std::vector<std::size_t> order(many);
        std::iota(order.begin(), order.end(), 0);
        std::shuffle(order.begin(), order.end(), random);
        std::vector<std::vector<float>> values(many);
        std::vector<std::shared_ptr<Operation>> operations(many);
        for (const std::size_t i : order) {
          delay();
          values[i] = values_of(engine.rank(), counts[i % 10], i);
          operations[i] = engine.submit(
              0, request_of(CallKind::allreduce, "t" + std::to_string(i), {tensor_of(values[i], DType::f32)}));
        }
        std::shuffle(order.begin(), order.end(), random);
        for (const std::size_t i : order) {
          delay();
          wait(engine, operations[i]);
          CHECK(values[i] == sum_of(size, counts[i % 10], i));
        }
      }
    });
  }
}

TEST("the engine's thread completes operations that nobody waits for") {
  Engines engines(3, small_settings());
  engines.run([&](Engine& engine) {
    std::vector<std::vector<float>> values;
    std::vector<std::shared_ptr<Operation>> operations;
    for (std::size_t i = 0; i < 20; ++i) values.push_back(values_of(engine.rank(), 1000, i));
    for (std::size_t i = 0; i < 20; ++i)
      operations.push_back(engine.submit(
          0, request_of(CallKind::allreduce, "t" + std::to_string(i), {tensor_of(values[i], DType::f32)})));
    for (std::size_t i = 0; i < 20; ++i) {
      while (!operations[i]->done()) std::this_thread::sleep_for(std::chrono::microseconds(200));
      CHECK(values[i] == sum_of(3, 1000, i));
    }
  });
}

TEST("scales, averages and travels as a smaller type in one pass") {
  Engines engines(4, small_settings());
  engines.run([&](Engine& engine) {
    for (const std::size_t count : {std::size_t{5}, std::size_t{3001}}) {
      auto values = values_of(engine.rank(), count);
      Request request = request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}, Op::average);
      request.prescale = 0.5;
      request.postscale = 8;
      request.wire = DType::bf16;
      wait(engine, engine.submit(0, std::move(request)));
      const auto sum = sum_of(4, count);
      for (std::size_t i = 0; i < count; ++i) CHECK(std::abs(values[i] - sum[i]) <= sum[i] / 128 + 1e-6f);
    }
  });
}

TEST("a grouped operation holds several dtypes") {
  Engines engines(3, small_settings());
  engines.run([&](Engine& engine) {
    std::vector<float> a = values_of(engine.rank(), 700), c = values_of(engine.rank(), 3);
    std::vector<std::int64_t> b(900, engine.rank() + 1);
    wait(engine,
         engine.submit(0, request_of(CallKind::allreduce, "g",
                                     {tensor_of(a, DType::f32), tensor_of(b, DType::i64), tensor_of(c, DType::f32)})));
    CHECK(a == sum_of(3, 700));
    CHECK(c == sum_of(3, 3));
    CHECK(b == std::vector<std::int64_t>(900, 6));
  });
}

TEST("allgather, broadcast, alltoall, reducescatter and barrier") {
  for (const int size : {1, 2, 3, 4}) {
    Engines engines(size, small_settings());
    engines.run([&](Engine& engine) {
      const int rank = engine.rank();
      for (const std::size_t scale : {std::size_t{1}, std::size_t{37}, std::size_t{400}}) {
        // allgather: rank r gives r * scale rows of 3
        std::vector<float> rows = values_of(rank, static_cast<std::size_t>(rank) * scale * 3);
        auto gather = engine.submit(
            0, request_of(CallKind::allgather, "gather",
                          {tensor_of(rows, DType::f32,
                                     {static_cast<std::int64_t>(static_cast<std::size_t>(rank) * scale), 3})}));
        wait(engine, gather);
        std::vector<float> expected;
        for (int peer = 0; peer < size; ++peer) {
          const auto theirs = values_of(peer, static_cast<std::size_t>(peer) * scale * 3);
          expected.insert(expected.end(), theirs.begin(), theirs.end());
          CHECK_EQ(gather->results[0].rows[static_cast<std::size_t>(peer)],
                   static_cast<std::int64_t>(static_cast<std::size_t>(peer) * scale));
        }
        CHECK_EQ(gather->results[0].bytes, expected.size() * 4);
        CHECK(holds_bytes_of(gather->results[0], expected));

        // broadcast
        auto values = values_of(rank, scale * 11);
        Request broadcast = request_of(CallKind::broadcast, "broadcast", {tensor_of(values, DType::f32)});
        broadcast.root = size - 1;
        wait(engine, engine.submit(0, std::move(broadcast)));
        CHECK(values == values_of(size - 1, scale * 11));

        // alltoall: rank r gives (r + p) * scale rows to p
        std::vector<std::int64_t> splits;
        for (int peer = 0; peer < size; ++peer)
          splits.push_back(static_cast<std::int64_t>(static_cast<std::size_t>(rank + peer) * scale));
        const auto total = std::accumulate(splits.begin(), splits.end(), std::int64_t{0});
        std::vector<std::int64_t> sent;
        for (int peer = 0; peer < size; ++peer)
          sent.insert(sent.end(), static_cast<std::size_t>(splits[static_cast<std::size_t>(peer)]), rank * 100 + peer);
        Tensor tensor = tensor_of(sent, DType::i64, {total});
        tensor.splits = splits;
        auto exchange = engine.submit(0, request_of(CallKind::alltoall, "alltoall", {tensor}));
        wait(engine, exchange);
        std::vector<std::int64_t> received;
        for (int peer = 0; peer < size; ++peer)
          received.insert(received.end(), static_cast<std::size_t>(rank + peer) * scale, peer * 100 + rank);
        CHECK_EQ(exchange->results[0].bytes, received.size() * 8);
        CHECK(holds_bytes_of(exchange->results[0], received));

        // reducescatter of rows of 5
        const std::size_t row_count = scale + 1;
        auto input = values_of(rank, row_count * 5);
        const RowRange own = rows_of(row_count, rank, size);
        std::vector<float> part((own.end - own.begin) * 5);
        Tensor scattered = tensor_of(input, DType::f32, {static_cast<std::int64_t>(row_count), 5});
        scattered.output = reinterpret_cast<std::byte*>(part.data());
        wait(engine, engine.submit(0, request_of(CallKind::reducescatter, "scatter", {scattered})));
        const auto sum = sum_of(size, row_count * 5);
        CHECK(std::equal(part.begin(), part.end(), sum.begin() + static_cast<std::ptrdiff_t>(own.begin * 5)));
        wait(engine, engine.submit(0, request_of(CallKind::barrier, "barrier", {})));
      }
    });
  }
}

TEST("a mismatch raises one error on all ranks, and the next operation works") {
  Engines engines(3, small_settings());
  engines.run([&](Engine& engine) {
    for (int round = 0; round < 20; ++round) {
      std::vector<float> values(engine.rank() == 1 ? 5 : 4, 1);
      auto wrong = engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}));
      CHECK_THROWS(
          wait(engine, wrong),
          "'x' they differ: ranks 0, 2 submitted allreduce(op=Sum, dtype=float32, shape=[4]); rank 1 submitted "
          "allreduce(op=Sum, dtype=float32, shape=[5]). Nothing was changed");
      CHECK(values[0] == 1);
      std::vector<float> right(4, 1);
      wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(right, DType::f32)})));
      CHECK(right[0] == 3);
    }
  });
}

TEST("unnamed operations of different kinds are a mismatch") {
  Engines engines(2, small_settings());
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    Request request =
        request_of(engine.rank() == 0 ? CallKind::allreduce : CallKind::broadcast, "", {tensor_of(values, DType::f32)});
    if (engine.rank() == 1) request.root = 0;
    CHECK_THROWS(wait(engine, engine.submit(0, std::move(request))), "'unnamed.0' they differ");
  });
}

TEST("overlapping groups have operations in flight at once") {
  Engines engines(3, small_settings());
  engines.connect(1, {0, 1});
  engines.connect(2, {1, 2});
  engines.connect(3, {0, 2});
  engines.run([&](Engine& engine) {
    RandomDelay delay(engine.rank());
    for (std::size_t round = 0; round < 50; ++round) {
      std::vector<std::uint32_t> mine;
      for (std::uint32_t group = 1; group <= 3; ++group)
        if (engine.group(group)) mine.push_back(group);
      if (engine.rank() == 1) std::reverse(mine.begin(), mine.end());
      mine.push_back(0);
      std::vector<std::vector<float>> values(4);
      std::vector<std::pair<std::uint32_t, std::shared_ptr<Operation>>> operations;
      for (const std::uint32_t group : mine) {
        delay();
        values[group] = values_of(engine.rank(), 3000, round);
        operations.emplace_back(
            group, engine.submit(group, request_of(CallKind::allreduce, "x", {tensor_of(values[group], DType::f32)})));
      }
      for (const auto& [group, operation] : operations) {
        wait(engine, operation);
        std::vector<float> sum(3000);
        for (const int peer : engine.group(group)->ranks()) {
          const auto theirs = values_of(peer, 3000, round);
          for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += theirs[i];
        }
        CHECK(values[group] == sum);
      }
    }
  });
}

TEST("a stalled group does not delay another, and fails when it is removed") {
  Engines engines(2, small_settings());
  engines.connect(1, {0, 1});
  engines.run([&](Engine& engine) {
    std::vector<float> stalled(10), values(10, 1);
    std::shared_ptr<Operation> waits;
    if (engine.rank() == 0)
      waits = engine.submit(1, request_of(CallKind::allreduce, "never", {tensor_of(stalled, DType::f32)}));
    for (int round = 0; round < 20; ++round)
      wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})));
    CHECK(!waits || !waits->done());
    engine.remove_group(1);
    if (waits)
      CHECK_THROWS(
          wait(engine, waits),
          "'never', allreduce(op=Sum, dtype=float32, shape=[10]), cannot be completed: the process set was removed");
    CHECK_THROWS(engine.submit(1, request_of(CallKind::barrier, "x", {})), "registered process set");
  });
}

TEST("a rank that has joined gives nothing, and all learn who joined last") {
  Engines engines(3, small_settings());
  engines.run([&](Engine& engine) {
    for (int round = 0; round < 10; ++round) {
      const int last = round % 3;
      const int steps = engine.rank() == last ? 12 : engine.rank() + 1;
      for (int step = 0; step < steps; ++step) {
        const std::size_t count = step % 2 == 0 ? 7 : 2000;
        std::vector<float> values(count, 1);
        wait(engine,
             engine.submit(0, request_of(CallKind::allreduce, "step", {tensor_of(values, DType::f32)}, Op::average)));
        float givers = 0;
        for (int peer = 0; peer < 3; ++peer) givers += step < (peer == last ? 12 : peer + 1);
        CHECK(values.front() == givers / 3 && values.back() == givers / 3);
      }
      if (engine.rank() == last) {
        std::vector<float> values(4, 1);
        CHECK_THROWS(
            wait(engine, engine.submit(0, request_of(CallKind::allgather, "g", {tensor_of(values, DType::f32)}))),
            "not supported while a rank has joined");
      }
      auto join = engine.submit(0, request_of(CallKind::join, "join", {}));
      wait(engine, join);
      CHECK_EQ(join->last_joined, last);
    }
  });
}

TEST("a joined rank that allows it has empty parts in all collectives") {
  Engines engines(3, small_settings());
  engines.run([&](Engine& engine) {
    if (engine.rank() != 1) {
      std::vector<float> values(2000, static_cast<float>(engine.rank()));
      auto gather = engine.submit(0, request_of(CallKind::allgather, "g", {tensor_of(values, DType::f32)}));
      wait(engine, gather);
      CHECK_EQ(gather->results[0].bytes, std::size_t{16000});
      CHECK_EQ(gather->results[0].rows[1], std::int64_t{0});
      std::vector<float> part((rows_of(2000, engine.rank(), 3).end - rows_of(2000, engine.rank(), 3).begin));
      Tensor tensor = tensor_of(values, DType::f32);
      tensor.output = reinterpret_cast<std::byte*>(part.data());
      wait(engine, engine.submit(0, request_of(CallKind::reducescatter, "r", {tensor})));
      CHECK(part.front() == 2 && part.back() == 2);
      Tensor sent = tensor_of(values, DType::f32);
      sent.splits = {1000, 500, 500};
      auto exchange = engine.submit(0, request_of(CallKind::alltoall, "a", {sent}));
      wait(engine, exchange);
      CHECK_EQ(exchange->results[0].rows[1], std::int64_t{0});
      wait(engine, engine.submit(0, request_of(CallKind::barrier, "b", {})));
    }
    Request join = request_of(CallKind::join, "join", {});
    join.allow = true;
    wait(engine, engine.submit(0, std::move(join)));
  });
}

TEST("bad requests are refused at once and change nothing") {
  Engines engines(2, small_settings());
  std::atomic<bool> checked{false};  // rank 0 has tried the name twice
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    std::vector<std::uint8_t> flags(4, 1);
    std::shared_ptr<Operation> first;
    if (engine.rank() == 0) {
      first = engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}));
      CHECK_THROWS(engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})),
                   "one operation at a time: 'x'");
      checked = true;
    }
    CHECK_THROWS(
        engine.submit(0, request_of(CallKind::allreduce, "y", {tensor_of(flags, DType::boolean)}, Op::average)),
        "not defined for bool");
    CHECK_THROWS(engine.submit(0, request_of(CallKind::broadcast, "y", {tensor_of(values, DType::f32)})),
                 "must be a member");
    CHECK_THROWS(engine.submit(0, request_of(CallKind::reducescatter, "y", {tensor_of(values, DType::f32)}, Op::max)),
                 "Sum or Average");
    CHECK_THROWS(engine.submit(9, request_of(CallKind::barrier, "y", {})), "registered process set");
    Tensor scalar = tensor_of(values, DType::f32);
    scalar.shape = {};
    CHECK_THROWS(engine.submit(0, request_of(CallKind::allgather, "y", {scalar})), "rank zero");
    Tensor split = tensor_of(values, DType::f32);
    split.splits = {1, 2};
    CHECK_THROWS(engine.submit(0, request_of(CallKind::alltoall, "y", {split})), "splits");
    split.splits = {-1, 5};
    CHECK_THROWS(engine.submit(0, request_of(CallKind::alltoall, "y", {split})), "splits");
    while (!checked) std::this_thread::yield();
    if (engine.rank() == 1)
      first = engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}));
    wait(engine, first);
    CHECK(values[0] == 2);
  });
}

TEST("shutdown fails what is in flight by name, and peers hear of it") {
  Engines engines(3, small_settings());
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    if (engine.rank() == 2) {
      auto never = engine.submit(0, request_of(CallKind::allreduce, "mine", {tensor_of(values, DType::f32)}));
      engine.leave("it called shutdown()");
      CHECK_THROWS(wait(engine, never), "'mine', allreduce");
      CHECK_THROWS(engine.submit(0, request_of(CallKind::barrier, "b", {})), "shut down");
    } else {
      auto never = engine.submit(0, request_of(CallKind::allreduce, "theirs", {tensor_of(values, DType::f32)}));
      CHECK_THROWS(wait(engine, never), "rank 2 left (it called shutdown())");
    }
  });
}

TEST("a deadline names the ranks that have not submitted") {
  Settings settings = small_settings();
  settings.timeout_seconds = 2;  // by when rank 2 has submitted, however busy the machine
  Engines engines(3, settings);
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    wait(engine, engine.submit(0, request_of(CallKind::barrier, "start", {})));
    if (engine.rank() == 1) return;
    auto never = engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}));
    CHECK_THROWS(wait(engine, never), "'x' has been waiting for rank 1 for more than RINGRED_TIMEOUT_SECONDS=2 s");
  });
}

// The first rank of a node speaks for it, and is not the one that is late.
TEST("a deadline names the rank that has not made a call, also one of another node") {
  constexpr std::uint32_t group = RankBlock::callers_group;
  Settings settings = small_settings();
  settings.timeout_seconds = 2;
  Engines engines(4, settings);
  engines.connect(group, {0, 1, 2, 3});
  engines.run([&](Engine& engine) {
    const auto call = [&] { wait(engine, engine.submit(group, request_of(CallKind::barrier, "call", {}), true)); };
    call();
    if (engine.rank() == 3) return;
    CHECK_THROWS(call(), "has been waiting for rank 3 for more than RINGRED_TIMEOUT_SECONDS=2 s");
  });
}

TEST("a name that goes to two process sets fails in both within a second") {
  if (!on_one_node(2)) return;  // across nodes at the deadline
  Engines engines(2, small_settings());
  engines.connect(1, {0, 1});
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    auto wrong = engine.submit(engine.rank() == 0 ? 0 : 1,
                               request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}));
    CHECK_THROWS(wait(engine, wrong), "to the same process set, and for 'x' they differ");
    wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})));
    CHECK(values[0] == 2);
  });
}

TEST("a stall is reported with the stacks of the missing rank") {
  Settings settings = small_settings();
  settings.stall_seconds = 0.3;
  Engines engines(2, settings);
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    if (engine.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    wait(engine, engine.submit(0, request_of(CallKind::allreduce, "layer.weight", {tensor_of(values, DType::f32)})));
  });
  CHECK(engines.reports().find("layer.weight") != std::string::npos);
  CHECK(engines.reports().find("train.py") != std::string::npos);
}

TEST("many names one after the other take constant memory, and those in flight may be many") {
  Engines engines(2, small_settings());
  engines.run([&](Engine& engine) {
    std::vector<float> values(2, 0);
    for (int i = 0; i < 20000; ++i)
      wait(engine,
           engine.submit(0, request_of(CallKind::allreduce, "n" + std::to_string(i), {tensor_of(values, DType::f32)})));
    CHECK(engine.group(0)->names_used() <= NameTable::idle_names + 2);
    constexpr std::size_t many = 3000;
    std::vector<float> all(many, 1);
    std::vector<std::shared_ptr<Operation>> operations;
    for (std::size_t i = 0; i < many; ++i) {
      const std::size_t place = engine.rank() == 0 ? i : many - 1 - i;
      Tensor tensor;
      tensor.input = reinterpret_cast<const std::byte*>(&all[place]);
      tensor.output = reinterpret_cast<std::byte*>(&all[place]);
      tensor.dtype = DType::f32;
      operations.push_back(engine.submit(0, request_of(CallKind::allreduce, "m" + std::to_string(place), {tensor})));
    }
    for (const auto& operation : operations) wait(engine, operation);
    CHECK(std::all_of(all.begin(), all.end(), [](float value) { return value == 2; }));
  });
}

TEST("operations may be submitted and awaited from several threads") {
  Engines engines(2, small_settings());
  engines.run([&](Engine& engine) {
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 3; ++thread)
      threads.emplace_back([&, thread] {
        RandomDelay delay(thread);
        for (std::size_t i = 0; i < 100; ++i) {
          delay();
          auto values = values_of(engine.rank(), counts[i % 10], i);
          wait(engine, engine.submit(0, request_of(CallKind::allreduce, "t" + std::to_string(thread),
                                                   {tensor_of(values, DType::f32)})));
          CHECK(values == sum_of(2, counts[i % 10], i));
        }
      });
    for (std::thread& thread : threads) thread.join();
  });
}

TEST("whoever asks is told of the end of an operation, once") {
  Engines engines(2, small_settings());
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    auto operation = engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}));
    engine.tell(operation);
    const auto told = engine.await_told();
    CHECK(told.size() == 1 && told[0] == operation);
    engine.tell(operation);
    CHECK(engine.await_told().size() == 1);
    wait(engine, engine.submit(0, request_of(CallKind::barrier, "b", {})));
    std::thread listener([&] { CHECK(engine.await_told().empty()); });
    engine.leave("it is done");
    listener.join();
  });
}

TEST("a rank that gave up ends with an error, also where the others submit later") {
  Settings settings = small_settings();
  settings.timeout_seconds = 0.3;
  Engines engines(2, settings);
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    if (engine.rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(600));
    CHECK_THROWS(wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}))),
                 engine.rank() == 0 ? "rank 1 broke off (" : "waiting for rank 0");
  });
}

TEST("a rank that leaves in the middle of a batch breaks it for all") {
  for (int round = 0; round < 20; ++round) {
    Engines engines(3, small_settings());
    engines.run([&](Engine& engine) {
      std::vector<float> values(400000, 1);
      auto operation = engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}));
      if (engine.rank() == 2) {
        std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
        engine.leave("it was told to");
      }
      try {
        wait(engine, operation);
        CHECK(values == std::vector<float>(400000, 3));
      } catch (const Error& error) {
        CHECK(std::string(error.what()).find("it was told to") != std::string::npos || engine.rank() == 2);
      }
    });
  }
}

TEST("ranks in rows and columns that wait for a slow one are not confused") {
  Engines engines(4, small_settings());
  engines.connect(1, {0, 1});
  engines.connect(2, {2, 3});
  engines.connect(3, {0, 2});
  engines.connect(4, {1, 3});
  engines.run([&](Engine& engine) {
    if (engine.rank() == 3) std::this_thread::sleep_for(std::chrono::milliseconds(1000));
    for (const char* name : {"", "sum"})
      for (const std::uint32_t group : engine.rank() < 2
                                           ? std::vector<std::uint32_t>{1, engine.rank() == 0 ? 3u : 4u}
                                           : std::vector<std::uint32_t>{2, engine.rank() == 2 ? 3u : 4u}) {
        std::vector<float> values(4, 1);
        wait(engine, engine.submit(group, request_of(CallKind::allreduce, name, {tensor_of(values, DType::f32)})));
        CHECK(values[0] == 2);
      }
  });
}

TEST("two callers of one rank are both woken at once") {
  Engines engines(2, small_settings());
  engines.run([&](Engine& engine) {
    std::atomic<bool> slow_done{false};
    std::thread other([&] {
      std::vector<float> values(4, 1);
      if (engine.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
      wait(engine, engine.submit(0, request_of(CallKind::allreduce, "slow", {tensor_of(values, DType::f32)}), true));
      slow_done = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) {
      std::vector<float> values(4, 1);
      wait(engine, engine.submit(0, request_of(CallKind::allreduce, "fast", {tensor_of(values, DType::f32)}), true));
    }
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(1000));
    other.join();
  });
}

TEST("an operation that was to be awaited and is not is completed all the same, or fails at its deadline") {
  Settings settings = small_settings();
  settings.timeout_seconds = 2;
  Engines engines(2, settings);
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));  // engines sleep without a limit by now
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1), never(4, 1);
    auto operation = engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)}), true);
    auto alone = engine.rank() == 0
                     ? engine.submit(0, request_of(CallKind::allreduce, "alone", {tensor_of(never, DType::f32)}), true)
                     : operation;
    for (int i = 0; i < 400 && !(operation->done() && alone->done()); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CHECK(operation->done() && values[0] == 2);
    CHECK(alone->done());
    if (engine.rank() == 0) CHECK_THROWS(alone->raise(), "waiting for rank 1");
  });
}

TEST("a group is removed while another thread waits in it or elsewhere") {
  for (std::uint32_t round = 0; round < 10; ++round) {
    Engines engines(2, small_settings());
    engines.connect(1, {0, 1});
    engines.run([&](Engine& engine) {
      std::vector<float> values(4, 1);
      std::atomic<bool> submitted{engine.rank() != 0};
      std::thread waiting;
      if (engine.rank() == 0)
        waiting = std::thread([&] {
          const auto operation =
              engine.submit(round % 2, request_of(CallKind::allreduce, "never", {tensor_of(values, DType::f32)}));
          submitted = true;
          CHECK_THROWS(wait(engine, operation), "'never'");
        });
      while (!submitted) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const auto start = std::chrono::steady_clock::now();
      engine.remove_group(1);
      CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(500));
      if (engine.rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      engine.leave("it is done");
      if (waiting.joinable()) waiting.join();
    });
  }
}

TEST("an operation that nobody waits for starts as soon as all have submitted it") {
  Engines engines(3, small_settings());
  engines.connect(1, {0, 2});
  std::vector<std::atomic<std::int64_t>> submitted(60);
  std::atomic<int> slow{0};
  engines.run([&](Engine& engine) {
    for (std::size_t round = 0; round < submitted.size(); ++round) {
      const std::uint32_t group = engine.rank() == 1 ? 0 : static_cast<std::uint32_t>(round % 2);
      if (engine.rank() == 1 && round % 2 == 1) continue;
      std::this_thread::sleep_for(std::chrono::milliseconds(static_cast<int>(round) % 7 + engine.rank()));
      std::vector<float> values(600, 1);
      auto operation = engine.submit(
          group, request_of(CallKind::allreduce, "t" + std::to_string(round), {tensor_of(values, DType::f32)}));
      std::int64_t last = submitted[round];
      while (last < operation->submitted && !submitted[round].compare_exchange_weak(last, operation->submitted)) {
      }
      while (!operation->done()) std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (operation->ended - submitted[round] > 40'000'000) ++slow;
    }
  });
  CHECK(slow < 30);  // of 150; most of them would be, waiting for the next look at 100 ms
}

TEST("a failing report disturbs nobody") {
  Settings settings = small_settings();
  Engines engines(2, settings);
  engines.fail_stacks = true;
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    if (engine.rank() == 0) {
      engine.stalls_in("rank 0 waits");  // rank 0 asks all for their stacks
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    }
    wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})));
    CHECK(values[0] == 2);
    engine.leave("it is done");
  });
}

TEST("one stall is reported once, however many ranks wait") {
  if (!on_one_node(4)) return;  // once on each node
  Settings settings = small_settings();
  settings.stall_seconds = 0.4;
  Engines engines(4, settings);
  engines.run([&](Engine& engine) {
    std::vector<float> values(4, 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(engine.rank() == 3 ? 1100 : 50 * engine.rank()));
    wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})));
  });
  const std::string reports = engines.reports();
  std::size_t count = 0;
  for (std::size_t at = reports.find("ringred autopsy"); at != std::string::npos;
       at = reports.find("ringred autopsy", at + 1))
    ++count;
  CHECK(count >= 1 && count <= 2);  // in 1.1 s of waiting a second one is due after 0.8
}

TEST("a mismatch beyond what a description shows is told by the fingerprints") {
  Engines engines(2, small_settings());
  engines.run([&](Engine& engine) {
    std::vector<float> values(8, 1);
    std::vector<Tensor> tensors(6, tensor_of(values, DType::f32));
    for (Tensor& tensor : tensors) tensor.output = nullptr;
    if (engine.rank() == 1) tensors.back().shape = {4, 2};
    Request request = request_of(CallKind::allgather, "x", tensors);
    CHECK_THROWS(wait(engine, engine.submit(0, request)), "rank 0 submitted allgather(tensors=6");
    CHECK_THROWS(wait(engine, engine.submit(0, request)), "; rank 1 submitted allgather(tensors=6");
  });
}

TEST("outputs that share memory are refused") {
  Engines engines(1, small_settings());
  std::vector<float> values(8, 1);
  Tensor first = tensor_of(values, DType::f32, {4}), second = first;
  second.output += 8;
  CHECK_THROWS(engines[0].submit(0, request_of(CallKind::allreduce, "x", {first, second})), "must not overlap");
  second.output = first.output + 16;
  wait(engines[0], engines[0].submit(0, request_of(CallKind::allreduce, "x", {second, first})));
}

// Synchronous calls across nodes: no sequencer, one message.
TEST("operations in step agree among all members, disagree alike, and go on") {
  constexpr std::uint32_t group = RankBlock::callers_group;
  for (const int size : {1, 2, 3, 4}) {
    Engines engines(size, small_settings());
    engines.connect(group, [&] {
      std::vector<int> ranks(static_cast<std::size_t>(size));
      std::iota(ranks.begin(), ranks.end(), 0);
      return ranks;
    }());
    engines.run([&](Engine& engine) {
      RandomDelay delay(engine.rank());
      const auto call = [&](Request request) {
        delay();
        wait(engine, engine.submit(group, std::move(request), true));
      };
      for (std::size_t round = 0; round < 60; ++round) {
        const std::size_t count = counts[round % 10];
        auto values = values_of(engine.rank(), count, round);
        call(request_of(CallKind::allreduce, "call", {tensor_of(values, DType::f32)}));
        CHECK(values == sum_of(size, count, round));
        values = values_of(engine.rank(), count, round);
        Request broadcast = request_of(CallKind::broadcast, "call", {tensor_of(values, DType::f32)});
        broadcast.root = static_cast<int>(round) % size;
        call(std::move(broadcast));
        CHECK(values == values_of(static_cast<int>(round) % size, count, round));
        if (round % 3 == 0) call(request_of(CallKind::barrier, "call", {}));
        if (size == 1 || round % 7 != 0) continue;
        // A small call of one rank meets a large one of the others.
        const bool odd = engine.rank() == static_cast<int>(round) % size;
        std::vector<float> kept(odd ? 3 : 20000, 1);
        CHECK_THROWS(call(request_of(CallKind::allreduce, "call", {tensor_of(kept, DType::f32)})),
                     "All ranks must make the same call: rank");
        CHECK(kept.front() == 1 && kept.back() == 1);
      }
    });
  }
}

// Where all members of a node have theirs in the arena, which others need not do.
TEST("calls reduce arrays of the arena where they lie") {
  constexpr std::uint32_t group = RankBlock::callers_group;
  constexpr std::size_t count = 20011;
  for (const int size : {2, 3, 4}) {
    Engines engines(size, small_settings());
    std::vector<int> ranks(static_cast<std::size_t>(size));
    std::iota(ranks.begin(), ranks.end(), 0);
    engines.connect(group, ranks);
    engines.run([&](Engine& engine) {
      RandomDelay delay(engine.rank());
      const auto block = engines.arena(engine.rank()).allocate(2 * count * sizeof(float));
      auto* room = reinterpret_cast<float*>(block->data());
      for (std::size_t round = 0; round < 40; ++round) {
        delay();
        auto values = values_of(engine.rank(), count, round);
        const bool elsewhere = round % 4 == 1 && engine.rank() == static_cast<int>(round / 4) % size;
        Request request = request_of(CallKind::allreduce, "call", {tensor_of(values, DType::f32)});
        if (!elsewhere) {
          float* array = room + round % 3 * 7;
          std::copy(values.begin(), values.end(), array);
          Tensor& tensor = request.tensors.front();
          tensor.output = reinterpret_cast<std::byte*>(array);
          tensor.input = tensor.output;
          request.location = engines.arena(engine.rank()).location(array, count * sizeof(float));
          CHECK(request.location > 0);
        }
        wait(engine, engine.submit(group, std::move(request), true));
        if (!elsewhere) std::copy_n(room + round % 3 * 7, count, values.begin());
        CHECK(values == sum_of(size, count, round));
      }
    });
  }
}
