// Schedules across nodes: the owners of a column play them on their nodes' sums. Ranks are threads.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>

#include "csrc/queue/group.h"
#include "tests/local/arena_arrays.h"
#include "tests/local/engines.h"

using namespace ringred;
using namespace ringred::check;

namespace {

constexpr std::string_view schedules[] = {"ring", "double_tree", "halving_doubling", "recursive_doubling", "circulant"};

// Even nodes and uneven ones, numbers of them that are powers of two and others.
const std::vector<std::vector<int>> layouts{{0, 1}, {0, 1, 2}, {0, 0, 1, 1, 2, 2}, {0, 1, 2, 3, 4}, {0, 0, 0, 1, 2, 2}};

Settings settings_for(std::string_view algorithm) {
  Settings settings = small_settings();
  settings.algorithm = algorithm;
  return settings;
}

std::vector<int> all_ranks(std::size_t size) {
  std::vector<int> ranks(size);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

std::vector<float> values_of(int rank, std::size_t count, std::size_t seed) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<float>((i * 7 + static_cast<std::size_t>(rank) * 13 + seed) % 101);
  return values;
}

std::vector<float> sum_of(std::size_t size, std::size_t count, std::size_t seed) {
  std::vector<float> sum(count);
  for (std::size_t rank = 0; rank < size; ++rank) {
    const auto values = values_of(static_cast<int>(rank), count, seed);
    for (std::size_t i = 0; i < count; ++i) sum[i] += values[i];
  }
  return sum;
}

// Messages of all ranks for some allreduces, one after the other.
std::size_t messages_for(std::string_view algorithm, const std::vector<int>& nodes, std::size_t count) {
  const int size = static_cast<int>(nodes.size());
  Engines engines(size, settings_for(algorithm), {}, nodes);
  const auto sent = [&] {
    std::size_t messages = 0;
    for (int rank = 0; rank < size; ++rank) messages += engines.switchboard().messages_sent(rank);
    return messages;
  };
  const auto play = [&](std::size_t rounds) {
    engines.run([&](Engine& engine) {
      for (std::size_t round = 0; round < rounds; ++round) {
        auto values = values_of(engine.rank(), count, round);
        wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})));
        CHECK(values == sum_of(nodes.size(), count, round));
      }
    });
  };
  play(2);
  const std::size_t before = sent();
  play(4);
  return sent() - before;
}

// A movement of many turns whose schedule has always been played.
class Played : public Movement {
 public:
  std::size_t turns() const override { return 8; }
  bool combines() const override { return true; }
  bool reduces() const override { return true; }
  bool keeps_results() const override { return true; }
  bool plays() const override { return true; }
  void copy_in(std::size_t turn, const Slots&) override { filled = turn + 1; }
  void copy_out(std::size_t turn, const Slots&) override { left = turn + 1; }
  void needed(Stage, std::size_t, int, std::vector<Stretch>&) const override {}
  std::size_t filled = 0, left = 0;
};

}  // namespace

TEST("a slot is filled again when the own node has left it, whatever other nodes do") {
  const Nodes nodes({0, 0, 1});
  const GroupLayout layout = GroupLayout::of(3, 4, true, 1024);
  std::vector<std::unique_ptr<std::byte[], void (*)(void*)>> memory;
  std::vector<GroupBlock*> blocks;
  for (std::size_t member = 0; member < nodes.size(); ++member) {
    memory.emplace_back(static_cast<std::byte*>(std::aligned_alloc(GroupLayout::page, layout.end())), std::free);
    std::memset(memory.back().get(), 0, layout.entries());
    blocks.push_back(new (memory.back().get()) GroupBlock);
  }
  TurnPlayer ahead(blocks, 0, layout, nodes, nullptr), behind(blocks, 1, layout, nodes, nullptr);
  Played first, second;
  ahead.start(first);
  behind.start(second);
  while (second.filled < 3) {
    if (behind.step() == Stage::none) CHECK(ahead.step() != Stage::none);
  }
  CHECK_EQ(second.left, 0u);
  while (ahead.step() != Stage::none) {
  }
  CHECK_EQ(first.left, 1u);    // as far as the other one has reduced
  CHECK_EQ(first.filled, 3u);  // a fourth turn would overwrite what the other one has not read
  while (!ahead.done() || !behind.done()) CHECK((behind.step() != Stage::none) | (ahead.step() != Stage::none));
}

TEST("every schedule gives the sum on all ranks, whatever else is in flight") {
  constexpr std::size_t counts[] = {0, 1, 33, 255, 1031, 4099};
  for (const std::string_view algorithm : schedules)
    for (const auto& nodes : layouts) {
      Engines engines(static_cast<int>(nodes.size()), settings_for(algorithm), {}, nodes);
      engines.run([&](Engine& engine) {
        RandomDelay delay(engine.rank());
        for (std::size_t round = 0; round < (sanitized ? 1 : 3); ++round) {
          std::vector<std::vector<float>> values;
          std::vector<std::shared_ptr<Operation>> operations;
          for (std::size_t i = 0; i < std::size(counts); ++i) {
            const std::size_t which = (i + static_cast<std::size_t>(engine.rank())) % std::size(counts);
            values.push_back(values_of(engine.rank(), counts[which], round));
            Request request =
                request_of(CallKind::allreduce, "sum " + std::to_string(which), {tensor_of(values.back(), DType::f32)});
            operations.push_back(engine.submit(0, std::move(request)));
            delay();
          }
          std::vector<float> root(3000, static_cast<float>(engine.rank()));
          Request broadcast = request_of(CallKind::broadcast, "root", {tensor_of(root, DType::f32)});
          broadcast.root = 1;
          operations.push_back(engine.submit(0, std::move(broadcast)));
          for (const auto& operation : operations) wait(engine, operation);
          CHECK(root == std::vector<float>(3000, 1));
          for (std::size_t i = 0; i < std::size(counts); ++i) {
            const std::size_t which = (i + static_cast<std::size_t>(engine.rank())) % std::size(counts);
            CHECK(values[i] == sum_of(nodes.size(), counts[which], round));
          }
        }
      });
    }
}

// Packets of one message and of two, and several of a part.
TEST("long arrays of all types and operators have the same bits on all ranks") {
  constexpr std::size_t count = sanitized ? 100003 : 400003;
  const std::vector<int> nodes{0, 0, 1, 2};
  const auto n = static_cast<double>(nodes.size());
  for (const std::string_view algorithm : schedules) {
    Settings settings = settings_for(algorithm);
    settings.slot_bytes = (sanitized ? 128 : 512) << 10;
    Engines engines(static_cast<int>(nodes.size()), settings, {}, nodes);
    for (const DType dtype : {DType::f32, DType::f64, DType::i32, DType::bf16})
      for (const Op op : {Op::sum, Op::average, Op::max}) {
        if (sanitized && dtype != DType::f32) continue;
        std::vector<Bytes> before, after(nodes.size());
        for (std::size_t rank = 0; rank < nodes.size(); ++rank) before.push_back(numbers_of(dtype, count, rank));
        engines.run([&](Engine& engine) {
          Bytes mine = before[static_cast<std::size_t>(engine.rank())];
          Tensor tensor;
          tensor.input = tensor.output = mine.data();
          tensor.dtype = dtype;
          tensor.shape = {count};
          wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor}, op)));
          after[static_cast<std::size_t>(engine.rank())] = mine;
        });
        for (const Bytes& one : after) CHECK(same(one, after.front()));
        const Bytes exact = combined(dtype, op, before, static_cast<int>(nodes.size()));
        if (dtype == DType::i32 || op == Op::max) {
          CHECK(same(after.front(), exact));
          continue;
        }
        for (std::size_t i = 0; i < count; ++i) {
          double got = 0, wanted = 0;
          const auto read = [&](const Bytes& from, double& to) {
            float single = 0;
            const std::byte* place = from.data() + i * info(dtype).size;
            if (dtype == DType::f64) return static_cast<void>(std::memcpy(&to, place, sizeof to));
            if (dtype == DType::bf16)
              std::memcpy(reinterpret_cast<std::byte*>(&single) + 2, place, 2);
            else
              std::memcpy(&single, place, sizeof single);
            to = single;
          };
          read(after.front(), got);
          read(exact, wanted);
          // Of numbers up to 1 each of n - 1 additions, in either order, rounds a sum of up to n by half a unit.
          const double rounding = dtype == DType::f64 ? 0x1p-53 : dtype == DType::f32 ? 0x1p-24 : 0x1p-9;
          if (std::fabs(got - wanted) > 2 * (n - 1) * n * rounding) {
            CHECK(got == wanted);
            break;
          }
        }
      }
  }
}

// What is fused with what depends on the moment; by doublings no result does. On nodes that are a power of two and on
// others, which lend their sums.
TEST("doublings give the same bits, however long the array and whatever it is fused with") {
  constexpr std::size_t count = 3001;
  for (const std::size_t nodes : {std::size_t{4}, std::size_t{7}}) {
    std::vector<Bytes> results;
    for (const std::string_view algorithm : {"recursive_doubling", "halving_doubling"}) {
      Engines engines(static_cast<int>(nodes), settings_for(algorithm), {}, all_ranks(nodes));
      engines.run([&](Engine& engine) {
        for (std::size_t round = 0; round < 6; ++round) {
          Bytes mine = numbers_of(DType::f32, count, static_cast<std::size_t>(engine.rank())), others = mine;
          const auto submit = [&](const char* name, Bytes& numbers, std::size_t elements) {
            Tensor tensor;
            tensor.input = tensor.output = numbers.data();
            tensor.dtype = DType::f32;
            tensor.shape = {static_cast<std::int64_t>(elements)};
            return engine.submit(0, request_of(CallKind::allreduce, name, {tensor}));
          };
          std::shared_ptr<Operation> before;
          if (round % 2 == 1) before = submit("before", others, 17 * round);
          const auto operation = submit("mine", mine, count);
          if (before) wait(engine, before);
          wait(engine, operation);
          if (engine.rank() == 0) results.push_back(std::move(mine));
        }
      });
    }
    for (const Bytes& one : results) CHECK(same(one, results.front()));
  }
}

TEST("calls on arrays of the arena and elsewhere take the schedule that they ask for") {
  constexpr std::uint32_t group = RankBlock::callers_group;
  constexpr std::size_t count = 20011;
  for (const auto& nodes : layouts) {
    Engines engines(static_cast<int>(nodes.size()), small_settings(), {}, nodes);
    engines.connect(group, all_ranks(nodes.size()));
    engines.run([&](Engine& engine) {
      RandomDelay delay(engine.rank());
      const auto block = engines.arena(engine.rank()).allocate(count * sizeof(float));
      auto* array = reinterpret_cast<float*>(block->data());
      for (std::size_t round = 0; round < (sanitized ? 6 : 24); ++round) {
        delay();
        auto values = values_of(engine.rank(), count, round);
        Request request = request_of(CallKind::allreduce, "call", {tensor_of(values, DType::f32)});
        request.way = way_named(round % 6 == 5 ? "hierarchical" : schedules[round % 6]);
        if (request.way == Way::hierarchical) request.way.reset();
        const bool in_arena = round % 4 != 1 || engine.rank() != 0;
        if (in_arena) {
          std::copy(values.begin(), values.end(), array);
          request.tensors.front().input = request.tensors.front().output = block->data();
          request.location = engines.arena(engine.rank()).location(array, count * sizeof(float));
        }
        wait(engine, engine.submit(group, std::move(request), true));
        if (in_arena) std::copy_n(array, count, values.begin());
        CHECK(values == sum_of(nodes.size(), count, round));
      }
    });
  }
}

TEST("a node whose ranks have all joined gives nothing") {
  const std::vector<int> nodes{0, 0, 1, 1, 2, 2};
  Engines engines(6, settings_for("ring"), {}, nodes);
  engines.run([&](Engine& engine) {
    constexpr std::size_t count = 5000;
    for (int round = 0; round < 6; ++round) {
      if (engine.rank() >= 6 - round) break;
      std::vector<float> values(count, 1);
      wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})));
      CHECK(values == std::vector<float>(count, static_cast<float>(6 - round)));
    }
    wait(engine, engine.submit(0, request_of(CallKind::join, "", {})));
  });
}

TEST("norms are counted once") {
  const std::vector<int> nodes{0, 0, 1, 2};
  constexpr std::size_t count = 3000;
  Engines engines(4, settings_for("circulant"), {}, nodes);
  std::vector<double> squares(4);
  engines.run([&](Engine& engine) {
    std::vector<float> values(count, static_cast<float>(engine.rank()));
    Request request = request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)});
    request.norm = true;
    const auto operation = engine.submit(0, std::move(request));
    wait(engine, operation);
    squares[static_cast<std::size_t>(engine.rank())] = operation->squares;
  });
  CHECK(std::accumulate(squares.begin(), squares.end(), 0.0) == 36.0 * count);
}

TEST("over eight nodes a schedule has fewer messages than a direct exchange") {
  const std::vector<int> nodes = all_ranks(8);
  constexpr std::size_t count = 2048;  // of which nodes do not send their sums whole
  const std::size_t direct = messages_for("hierarchical", nodes, count);
  const std::size_t doubling = messages_for("recursive_doubling", nodes, count);
  CHECK(doubling * 2 < direct);
}

TEST("whoever waits for a rank that is gone or cut off hears which") {
  const std::vector<int> nodes{0, 1, 2};
  for (const bool leaves : {true, false}) {
    Settings settings = settings_for("ring");
    if (!leaves) settings.timeout_seconds = 2;
    Engines engines(3, settings, {}, nodes);
    const auto reduce = [](Engine& engine) {
      std::vector<float> values(5000);
      wait(engine, engine.submit(0, request_of(CallKind::allreduce, "x", {tensor_of(values, DType::f32)})));
    };
    engines.run(reduce);
    if (!leaves) engines.switchboard().cut(1, 2);
    engines.run([&](Engine& engine) {
      if (leaves && engine.rank() == 2) return engine.leave("had enough");
      CHECK_THROWS(reduce(engine), "rank");
    });
  }
}

TEST("mirrors of ranks on other nodes take memory as far as they are used") {
  constexpr std::size_t nodes = 24;
  const auto settings = read_settings([](std::string_view) { return std::nullopt; });
  const Nodes placement(all_ranks(nodes));
  const auto taken = [](Arena& arena) {
    struct stat status{};
    CHECK_EQ(fstat(arena.segment().descriptor(), &status), 0);
    return static_cast<std::size_t>(status.st_blocks) * 512;
  };
  const auto arena = Communicator::make_arena(1, [&] {
    Settings large = settings;
    large.arena_bytes = std::size_t{2} << 30;  // addresses
    return large;
  }());
  const std::size_t before = taken(*arena);
  const auto block = Group::reserve(*arena, placement, 1, settings);
  const std::size_t slots = 3 * 2 * settings.slot_bytes, each = taken(*arena) - before;
  CHECK(each > slots);               // the own ones
  CHECK(each < slots + (8u << 20));  // and little for each of the others
}
