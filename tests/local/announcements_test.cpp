// What a node tells the sequencer of another one: how many messages that takes, and that nothing is held back that
// could run. Ranks are threads; the nodes of each test are its own.
#include "tests/local/engines.h"

using namespace ringred;
using namespace ringred::check;

namespace {

Request barrier(const std::string& name) {
  return request_of(CallKind::barrier, name, {});
}

std::vector<std::size_t> messages_of(Engines& engines) {
  std::vector<std::size_t> messages;
  for (int rank = 0; rank < engines.size(); ++rank) messages.push_back(engines.switchboard().messages_sent(rank));
  return messages;
}

}  // namespace

TEST("a node announces an operation in one message") {
  constexpr std::size_t many = 100;
  Engines engines(6, small_settings(), {}, {0, 0, 1, 1, 1, 2});
  const auto run = [&] {
    engines.run([&](Engine& engine) {
      for (std::size_t i = 0; i < many; ++i) wait(engine, engine.submit(0, barrier("b" + std::to_string(i)), true));
    });
    return messages_of(engines);
  };
  const auto before = run(), after = run();
  const auto sent = [&](std::size_t rank) { return after[rank] - before[rank]; };
  // All say now and then which records they are through with.
  for (const std::size_t announcer : {2u, 5u}) CHECK(sent(announcer) >= many && sent(announcer) < many + many / 2);
  for (const std::size_t other : {1u, 3u, 4u}) CHECK(sent(other) < many);
  CHECK(sent(0) >= 2 * many && sent(0) < 3 * many);  // a record to each node
}

// Held back, it would go only with what is announced after Announcer::patience.
TEST("a name that a node completes is announced at once, whatever else its members wait for") {
  constexpr int rounds = 30;
  Engines engines(4, small_settings(), {}, {0, 1, 1, 1});
  std::atomic<int> slow{0};
  engines.run([&](Engine& engine) {
    RandomDelay delay(engine.rank());
    for (int round = 0; round < rounds; ++round) {
      std::vector<std::shared_ptr<Operation>> others;
      const auto submit_others = [&](bool early) {
        for (int other = 0; other < 4; ++other)
          if ((other == engine.rank()) == early) others.push_back(engine.submit(0, barrier(std::to_string(other))));
      };
      submit_others(true);
      delay();
      const auto start = std::chrono::steady_clock::now();
      wait(engine, engine.submit(0, barrier("all")));
      if (std::chrono::steady_clock::now() - start > std::chrono::nanoseconds(Announcer::patience * 3 / 4)) ++slow;
      submit_others(false);
      for (const auto& operation : others) wait(engine, operation);
    }
  });
  CHECK(slow < rounds);  // of all ranks together; held back, each would be in each round
}

TEST("members of a node join early, late and again, also its first") {
  Engines engines(4, small_settings(), {}, {0, 1, 1, 1});
  engines.run([&](Engine& engine) {
    RandomDelay delay(engine.rank());
    for (int round = 0; round < 24; ++round) {
      const int steps = (engine.rank() * 5 + round * (engine.rank() + 1)) % 7;
      for (int step = 0; step < steps; ++step) {
        std::vector<float> values(3, 1);
        delay();
        auto sum = engine.submit(
            0, request_of(CallKind::allreduce, "s" + std::to_string(step), {tensor_of(values, DType::f32)}));
        wait(engine, sum);
        float givers = 0;
        for (int peer = 0; peer < 4; ++peer) givers += step < (peer * 5 + round * (peer + 1)) % 7;
        CHECK(values.front() == givers && values.back() == givers);
      }
      wait(engine, engine.submit(0, request_of(CallKind::join, "join", {})));
    }
  });
}

TEST("a deadline on each node names who is missing, also where that is who announces") {
  Settings settings = small_settings();
  settings.timeout_seconds = 2;  // by when all have come, however busy the machine
  Engines engines(5, settings, {}, {0, 0, 1, 1, 2});
  engines.run([&](Engine& engine) {
    wait(engine, engine.submit(0, barrier("start")));
    if (engine.rank() == 2) return;
    CHECK_THROWS(wait(engine, engine.submit(0, barrier("x"))), "'x' has been waiting for rank 2 for more than");
  });
}

TEST("a name fails for all that have submitted it, also for whom their node held it back") {
  Engines engines(4, small_settings(), {}, {0, 0, 1, 1});
  engines.connect(1, {0, 1});
  engines.run([&](Engine& engine) {
    if (engine.rank() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(700));
    if (engine.rank() != 2)
      CHECK_THROWS(wait(engine, engine.submit(engine.rank() == 1 ? 1 : 0, barrier("x"))),
                   "to the same process set, and for 'x' they differ");
    wait(engine, engine.submit(0, barrier("y")));
  });
}

TEST("a rank leaves while its node holds back what others have submitted") {
  for (const int leaver : {1, 2, 3}) {
    Engines engines(4, small_settings(), {}, {0, 1, 1, 1});
    engines.run([&](Engine& engine) {
      wait(engine, engine.submit(0, barrier("start")));
      if (engine.rank() == leaver) return engine.leave("it was told to");
      CHECK_THROWS(wait(engine, engine.submit(0, barrier("x"))), "it was told to");
    });
  }
}
