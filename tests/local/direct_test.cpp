// Operations that work where arrays lie, in the arenas: allreduce in place, and the steps of an optimizer. They give
// the bits of staged or serial ones. Ranks are threads. Across nodes allreduce is staged, which queue_test tests.
#include <algorithm>
#include <numeric>
#include <random>

#include "tests/local/arena_arrays.h"
#include "tests/local/training.h"

using namespace ringred;
using namespace ringred::check;

namespace {

void check_allreduce(Engines& engines, DType dtype, Op op, std::size_t count, std::uint64_t seed) {
  Arrays arrays(engines, dtype, count, seed);
  const bool small = count < 100000;
  const Arrays others(engines, dtype, small ? count : 0, seed);  // the same, staged
  engines.run([&](Engine& engine) {
    stagger(engine.rank(), seed);
    auto direct = engine.submit(0, arrays.request(engine.rank(), "direct", op));
    auto staged = engine.submit(0, others.request(engine.rank(), "staged", op, false));
    wait(engine, direct);
    wait(engine, staged);
  });
  const Bytes wanted = reduced(dtype, op, arrays.before, engines.size());
  for (int rank = 0; rank < engines.size(); ++rank) {
    CHECK(same(arrays.now(rank), wanted));
    if (small) CHECK(same(others.now(rank), wanted));
  }
}

constexpr Rule rules[] = {Rule::sgd, Rule::adam, Rule::adamw};

}  // namespace

TEST("members own all elements once, and their states are contiguous") {
  for (const std::size_t bytes : {1u, 2u, 4u, 8u, 16u})
    for (std::size_t members = 1; members <= 6; ++members) {
      std::vector<std::size_t> counts(300);
      std::iota(counts.begin(), counts.end(), 0);
      for (std::size_t parts = 1; parts <= 3 * members; ++parts)
        for (const std::size_t more : {0u, 64u, 65u, 66u, 128u})
          counts.push_back(((std::size_t{2} << 20) / bytes) * parts - 65 + more);
      for (const std::size_t count : counts) {
        const Parts parts(count, bytes, members);
        std::vector<std::size_t> owned(members);
        std::size_t next = 0;
        bool right = true;
        for (std::size_t turn = 0; turn < parts.turns(); ++turn)
          for (std::size_t owner = 0; owner < members; ++owner) {
            const Parts::Part part = parts.of(turn, owner);
            right = right && part.begin == next && part.end >= part.begin;
            next = part.end;
            if (part.begin == part.end) continue;
            right = right && part.before == owned[owner] && part.begin * bytes % 64 == 0;
            right = right && parts.turn_of(part.begin) == turn && parts.turn_of(part.end - 1) == turn;
            owned[owner] += part.end - part.begin;
          }
        for (std::size_t owner = 0; owner < members; ++owner) right = right && parts.owned(owner) == owned[owner];
        CHECK(right && next == count);
      }
    }
}

TEST("an allreduce in place gives the bits of the staged one, for every dtype, operator and length") {
  for (int size = 1; size <= 5; ++size) {
    if (!on_one_node(size)) continue;
    Engines engines(size, small_settings());
    std::uint64_t seed = 0;
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i64})
      for (const Op op : {Op::average, Op::sum, Op::max})
        for (const std::size_t count : {0u, 1u, 15u, 16u, 17u, 1000u})
          check_allreduce(engines, dtype, op, count, ++seed);
  }
}

TEST("an allreduce in place of several turns gives the bits of one call of the kernel") {
  constexpr DType dtypes[] = {DType::i64, DType::f32, DType::f64, DType::i64, DType::f64};
  constexpr std::size_t whole_turns[] = {3, 2, 1, 1, 1};
  for (int size = 1; size <= 5; ++size) {
    if (!on_one_node(size)) continue;
    Engines engines(size, small_settings());
    const DType dtype = dtypes[size - 1];
    const std::size_t turn = turn_of(dtype, size), part = turn / static_cast<std::size_t>(size);
    check_allreduce(engines, dtype, Op::average, whole_turns[size - 1] * turn + part / 2 + 9, 5);
  }
}

TEST("arrays in place and staged are in flight at once, submitted in another order on each rank") {
  Engines engines(3, small_settings());
  engines.connect(1, {0, 2});
  constexpr std::size_t many = 9;
  for (std::uint64_t round = 0; round < 12; ++round) {
    std::vector<std::unique_ptr<Arrays>> arrays;
    for (std::size_t i = 0; i < many; ++i)
      arrays.push_back(std::make_unique<Arrays>(engines, DType::f32, 700 * i + round, 100 * round + i));
    const auto group_of = [](std::size_t i) { return static_cast<std::uint32_t>(i % 4 == 1); };
    engines.run([&](Engine& engine) {
      const int rank = engine.rank();
      std::mt19937 random(static_cast<unsigned>(100 * round) + static_cast<unsigned>(rank));
      std::vector<std::size_t> order(many);
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      std::vector<std::shared_ptr<Operation>> operations;
      for (const std::size_t i : order) {
        stagger(rank, many * round + i);
        if (!engine.group(group_of(i))) continue;
        Request request = arrays[i]->request(rank, "t" + std::to_string(i), Op::average, i % 3 != 2);
        operations.push_back(engine.submit(group_of(i), std::move(request)));
      }
      std::shuffle(operations.begin(), operations.end(), random);
      for (const auto& operation : operations) {
        if (round % 2 == 0) wait(engine, operation);
        while (!operation->done()) std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    });
    for (std::size_t i = 0; i < many; ++i) {
      std::vector<Bytes>& before = arrays[i]->before;
      if (group_of(i) == 1) {
        CHECK(same(arrays[i]->now(1), before[1]));
        before.erase(before.begin() + 1);
      }
      const Bytes wanted = reduced(DType::f32, Op::average, before, static_cast<int>(before.size()));
      for (const int rank : {0, 1, 2})
        if (rank != 1 || group_of(i) == 0) CHECK(same(arrays[i]->now(rank), wanted));
    }
  }
}

TEST("with the norm come the same bits, and the squares of all ranks' parts are those of the result") {
  for (int size = 1; size <= 5; ++size) {
    Engines engines(size, small_settings());
    std::uint64_t seed = 0;
    for (const DType dtype : {DType::f32, DType::f64})
      for (const Op op : {Op::average, Op::sum})
        for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{17}, std::size_t{5000},
                                        std::size_t{70001}, turn_of(dtype, size) + 21}) {
          if (count > 100000 && (size > 2 || op == Op::sum)) continue;
          if (count > 10000 && !on_one_node(size)) continue;
          Arrays arrays(engines, dtype, count, ++seed);
          std::vector<double> squares(static_cast<std::size_t>(size));
          engines.run([&](Engine& engine) {
            stagger(engine.rank(), seed);
            auto operation = engine.submit(0, arrays.request(engine.rank(), "x", op, true, true));
            wait(engine, operation);
            squares[static_cast<std::size_t>(engine.rank())] = operation->squares;
          });
          const Bytes wanted = reduced(dtype, op, arrays.before, size);
          for (int rank = 0; rank < size; ++rank) CHECK(same(arrays.now(rank), wanted));
          CHECK(
              is_sum(std::accumulate(squares.begin(), squares.end(), 0.0), squares_of(dtype, wanted, 0, count), count));
        }
  }
}

TEST("with a rank that has joined the others reduce theirs in place, but take no norm and no step") {
  Engines engines(3, small_settings());
  for (const std::size_t count : {std::size_t{1}, std::size_t{1000}, turn_of(DType::f32, 3) + 5}) {
    for (const Op op : {Op::average, Op::sum}) {
      if (count > 1000 && op == Op::sum) continue;
      Arrays arrays(engines, DType::f32, count, 3), untouched(engines, DType::f32, count, 4);
      engines.run([&](Engine& engine) {
        const int rank = engine.rank();
        if (rank != 1) {
          wait(engine, engine.submit(0, arrays.request(rank, "x", op)));
          const std::string text = "takes all ranks, and rank 1 has joined";
          auto norm = engine.submit(0, untouched.request(rank, "norm", op, true, true));
          CHECK(kind_of_error(engine, norm, text) == ErrorKind::mismatch);
          auto update = std::make_shared<Update>(update_of(Rule::sgd, count));
          update->parameters = untouched.data_here(rank);
          auto step = engine.submit(0, untouched.step(rank, "step", op, update));
          CHECK(kind_of_error(engine, step, text) == ErrorKind::mismatch);
        }
        wait(engine, engine.submit(0, request_of(CallKind::join, "join", {})));
      });
      for (int rank = 0; rank < 3; ++rank)
        CHECK(same(untouched.now(rank), untouched.before[static_cast<std::size_t>(rank)]));
      CHECK(same(arrays.now(1), arrays.before[1]));
      const Bytes wanted = reduced(DType::f32, op, {arrays.before[0], arrays.before[2]}, 3);
      CHECK(same(arrays.now(0), wanted) && same(arrays.now(2), wanted));
      check_allreduce(engines, DType::f32, op, 100, 8);
    }
  }
}

TEST("a mismatch of operations in place is an error on all ranks that changes nothing, and the next one works") {
  Engines engines(3, small_settings());
  using Change = void (*)(Request&, Update&);
  const Change changes[] = {[](Request& request, Update&) { request.direct = false; },
                            [](Request& request, Update&) { request.norm = true; },
                            [](Request&, Update& update) { update.rates[1].learning_rate *= 2; },
                            [](Request&, Update& update) { update.rates[0].first = false; },
                            [](Request&, Update& update) { update.factor = 1; },
                            [](Request&, Update& update) { update.stretches[1].end -= 1; },
                            [](Request&, Update& update) { update.stretches.pop_back(); },
                            [](Request&, Update& update) { update.stretches[0].rates = 1; },
                            [](Request&, Update& update) { update.rule = Rule::adam; },
                            [](Request&, Update& update) { update.measures = true; },
                            [](Request&, Update& update) { update.keeps_gradients = true; },
                            [](Request&, Update& update) {
                              update.shares_parameters = true;
                              update.parameters.resize(1);
                            },
                            [](Request& request, Update&) { request.op = Op::average; }};
  for (std::size_t i = 0; i < std::size(changes); ++i) {
    Arrays gradients(engines, DType::f32, 1000, i), parameters(engines, DType::f32, 1000, i);
    States states(1000, DType::f32, 3, false);
    engines.run([&](Engine& engine) {
      const int rank = engine.rank();
      auto update = std::make_shared<Update>(update_of(Rule::sgd, 1000));
      update->parameters = parameters.data_here(rank);
      update->states = states.of(rank);
      Request request = i < 2 ? gradients.request(rank, "x", Op::sum) : gradients.step(rank, "x", Op::sum, update);
      if (rank == 1) changes[i](request, *update);
      CHECK(kind_of_error(engine, engine.submit(0, request), "'x' they differ: ranks 0, 2") == ErrorKind::mismatch);
    });
    for (int rank = 0; rank < 3; ++rank) {
      CHECK(same(gradients.now(rank), gradients.before[static_cast<std::size_t>(rank)]));
      CHECK(same(parameters.now(rank), parameters.before[static_cast<std::size_t>(rank)]));
    }
    for (const auto& kept : states.kept) CHECK(kept[0] == Bytes(kept[0].size()));
    check_training(engines, {DType::f32, 500, Op::sum, false, false, 1}, update_of(Rule::sgd, 500));
  }
}

TEST("what cannot be done in place is refused at once, and the name is free") {
  Engines engines(2, small_settings());
  Arrays arrays(engines, DType::f32, 100, 1);
  engines.run([&](Engine& engine) {
    const int rank = engine.rank();
    std::vector<float> outside(100, 1);
    Request request = arrays.request(rank, "x", Op::sum);
    request.tensors = {tensor_of(outside, DType::f32)};
    CHECK_THROWS(engine.submit(0, request), "lies in the arena: allocate it with empty()");
    auto update = std::make_shared<Update>(update_of(Rule::sgd, 100));
    Request step = arrays.step(rank, "x", Op::sum, update);
    step.tensors = request.tensors;
    CHECK_THROWS(engine.submit(0, step), "lies in the arena: allocate it with empty()");
    Request beyond = arrays.request(rank, "x", Op::sum);
    beyond.tensors[0].shape = {std::int64_t{1} << 40};
    CHECK_THROWS(engine.submit(0, beyond), "lies in the arena: allocate it with empty()");
    std::vector<Request> wrong(4, arrays.request(rank, "x", Op::sum));
    wrong[0].prescale = 2;
    wrong[1].wire = DType::bf16;
    wrong[2].tensors[0].output = reinterpret_cast<std::byte*>(outside.data());
    wrong[3].tensors.clear();
    for (const Request& one : wrong)
      CHECK_THROWS(engine.submit(0, one), "reduced in place is one array, neither scaled nor cast");
    Request norm = arrays.request(rank, "x", Op::max);
    norm.norm = true;
    CHECK_THROWS(engine.submit(0, norm), "A norm or an update takes Sum or Average: op is Max.");
    norm.op = Op::sum;
    norm.tensors[0].dtype = DType::i32;
    CHECK_THROWS(engine.submit(0, norm), "take float32 or float64: the dtype is int32");
    wait(engine, engine.submit(0, arrays.request(rank, "x", Op::sum)));
  });
  for (const int rank : {0, 1}) CHECK(same(arrays.now(rank), reduced(DType::f32, Op::sum, arrays.before, 2)));
}

TEST("steps leave the bits of a serial optimizer on all ranks, and elements without a stretch as they were") {
  for (int size = 1; size <= 4; ++size) {
    Engines engines(size, small_settings());
    for (const DType dtype : {DType::f32, DType::f64})
      for (const Rule rule : rules)
        for (const std::size_t count : {1u, 17u, 1000u, 5003u})
          for (const bool keeps : {false, true})
            check_training(engines, {dtype, count, keeps ? Op::average : Op::sum, keeps, count == 17, keeps ? 3 : 2},
                           update_of(rule, count));
  }
}

TEST("steps of several turns skip those in which nothing steps, and leave the same bits") {
  for (const Rule rule : rules) {
    const int size = rule == Rule::sgd ? 1 : 2;
    if (size == 1 && !on_one_node(2)) continue;
    Settings settings = small_settings();
    settings.slot_bytes = std::size_t{64} << 10;  // into which slices of a turn go, across nodes
    Engines engines(size, settings);
    const DType dtype = rule == Rule::adam ? DType::f64 : DType::f32;
    const std::size_t turn = turn_of(dtype, size), part = turn / static_cast<std::size_t>(size);
    const std::size_t count = 2 * turn + part + 300;
    Update update = update_of(rule, 0);
    update.stretches = {{3, 1000, 0},
                        {part - 5000, part - 900, 1},
                        {part - 600, rule == Rule::adam ? turn + 100 : turn - 100, 0},  // only Adam skips no turn
                        {2 * turn, 2 * turn + 400, 1},
                        {2 * turn + part - 60, count - 9, 0}};
    if (rule == Rule::adamw) update.stretches[2].end = part + 700;
    check_training(engines, {dtype, count, Op::average, rule == Rule::sgd, false, rule == Rule::sgd ? 2 : 1}, update);
  }
}

TEST("a step that only measures changes nothing, and finds the squares of what would step") {
  for (int size = 1; size <= 4; ++size) {
    Engines engines(size, small_settings());
    for (const DType dtype : {DType::f32, DType::f64})
      for (const std::size_t count : {1u, 1000u, 70001u}) {
        Arrays parameters(engines, dtype, count, 1), gradients(engines, dtype, count, 2);
        Update update = update_of(Rule::adam, count);
        update.measures = true;
        std::vector<double> squares(static_cast<std::size_t>(size));
        engines.run([&](Engine& engine) {
          const int rank = engine.rank();
          auto mine = std::make_shared<Update>(update);
          mine->parameters = parameters.data_here(rank);
          auto operation = engine.submit(0, gradients.step(rank, "x", Op::average, mine));
          wait(engine, operation);
          squares[static_cast<std::size_t>(rank)] = operation->squares;
        });
        const Bytes average = reduced(dtype, Op::average, gradients.before, size);
        long double exact = 0;
        for (const auto& stretch : update.stretches) exact += squares_of(dtype, average, stretch.begin, stretch.end);
        CHECK(is_sum(std::accumulate(squares.begin(), squares.end(), 0.0), exact, count));
        for (int rank = 0; rank < size; ++rank) {
          CHECK(same(parameters.now(rank), parameters.before[static_cast<std::size_t>(rank)]));
          CHECK(same(gradients.now(rank), gradients.before[static_cast<std::size_t>(rank)]));
        }
      }
  }
}

TEST("a rank that leaves ends the others' operations in place, with its name") {
  Engines engines(3, small_settings());
  Arrays arrays(engines, DType::f32, 1000, 1), parameters(engines, DType::f32, 1000, 2);
  engines.run([&](Engine& engine) {
    if (engine.rank() == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      return engine.leave("it was told to");
    }
    auto reduction = engine.submit(0, arrays.request(engine.rank(), "x", Op::sum));
    auto update = std::make_shared<Update>(update_of(Rule::sgd, 1000));
    update->parameters = parameters.data_here(engine.rank());
    auto step = engine.submit(0, parameters.step(engine.rank(), "step", Op::sum, update));
    const auto start = std::chrono::steady_clock::now();
    for (const auto& operation : {reduction, step})
      CHECK_THROWS(wait(engine, operation), "rank 2 left (it was told to)");
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  });
}

TEST("a rank that leaves in the middle of a reduction in place breaks it for all") {
  if (!on_one_node(3)) return;
  for (int round = 0; round < 8; ++round) {
    Engines engines(3, small_settings());
    Arrays arrays(engines, DType::f64, turn_of(DType::f64, 3) + 1000, 1);
    std::atomic<int> completed{0};
    engines.run([&](Engine& engine) {
      auto operation = engine.submit(0, arrays.request(engine.rank(), "x", Op::sum));
      if (engine.rank() == 2) {
        std::this_thread::sleep_for(std::chrono::microseconds(250 * round));
        engine.leave("it was told to");
      }
      try {
        wait(engine, operation);
        ++completed;
      } catch (const Error& error) {
        CHECK(std::string(error.what()).find("it was told to") != std::string::npos || engine.rank() == 2);
      }
    });
    if (completed == 0) continue;
    const Bytes wanted = reduced(DType::f64, Op::sum, arrays.before, 3);
    for (int rank = 0; rank < 3; ++rank) CHECK(same(arrays.now(rank), wanted));
  }
}
