// The wait loop: every way out of it, and that no wake-up is lost.
#include "csrc/base/wait.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "tests/local/ranks.h"

using namespace ringred;
using Clock = std::chrono::steady_clock;

namespace {

class Interrupting : public WaitHooks {
 public:
  void enter() override { ++inside; }
  void leave() override { --inside; }
  bool poll() override { return ++polls < 2; }
  void report(const std::string& sentence) override { reported = sentence; }
  int inside = 0, polls = -1000000;
  std::string reported;
};

// Two ranks' words; rank 0 waits on this thread.
struct Pair {
  Doorbell doorbells[2];
  Departure departures[2];
  int lifeline = -1;
  WaitSettings settings{false, std::chrono::microseconds(0), 30, 0};
  Interrupting hooks;

  Waiter waiter(int rank) {
    return Waiter(rank, {{&doorbells[0], &doorbells[1]}, {&departures[0], &departures[1]}, {-1, lifeline}}, settings,
                  rank == 0 ? &hooks : nullptr);
  }
};

void wait_for_ever(Pair& pair) {
  pair.waiter(0).until(1, [] { return false; }, [] { return std::string("in this test"); });
}

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

TEST("no wake-up is lost") {
  Pair pair;
  std::atomic<std::uint64_t> ball{0};
  constexpr std::uint64_t rounds = 20000;
  // Each waits for the other's turn; a lost wake-up would cost a slice of 100 ms.
  const auto play = [&](int rank) {
    Waiter waiter = pair.waiter(rank);
    check::RandomDelay delay(rank);
    for (std::uint64_t turn = static_cast<std::uint64_t>(rank); turn < rounds; turn += 2) {
      waiter.until(
          1 - rank, [&] { return ball.load(std::memory_order_seq_cst) == turn; }, [] { return std::string(); });
      if (turn % 8 < 2) delay();
      ball.store(turn + 1, std::memory_order_seq_cst);
      waiter.wake_sleepers();
    }
  };
  const auto start = Clock::now();
  std::thread other([&] { play(1); });
  play(0);
  other.join();
  CHECK_EQ(ball.load(), rounds);
  CHECK(Clock::now() - start < std::chrono::seconds(30));
}

TEST("a sleeper is woken at once, and sleeps without using the processor") {
  Pair pair;
  std::atomic<bool> flag{false};
  Clock::time_point set;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    Waiter waiter = pair.waiter(1);
    set = Clock::now();
    flag.store(true, std::memory_order_seq_cst);
    waiter.wake_sleepers();
  });
  const double before = processor_seconds();
  pair.waiter(0).until(1, [&] { return flag.load(std::memory_order_seq_cst); }, [] { return std::string(); });
  const auto late = Clock::now();
  CHECK(processor_seconds() - before < 0.05 * 0.25);
  other.join();
  CHECK(late - set < std::chrono::milliseconds(50));
  CHECK_EQ(pair.hooks.inside, 0);
}

TEST("a deadline ends the wait with a sentence") {
  Pair pair;
  pair.settings.timeout_seconds = 0.2;
  pair.settings.stall_seconds = 0.1;
  CHECK_THROWS(wait_for_ever(pair), "rank 0 waits for rank 1 in this test, for more than RINGRED_TIMEOUT_SECONDS=0.2");
  CHECK_EQ(pair.hooks.reported, "rank 0 waits for rank 1 in this test, for 0.1 s so far.");
  CHECK_EQ(pair.hooks.inside, 0);
}

TEST("a departed peer ends the wait") {
  Pair left;
  left.waiter(1).depart(Departure::left, "left (it called shutdown())");
  CHECK_THROWS(wait_for_ever(left), "rank 1 left (it called shutdown()) while rank 0 waits for rank 1 in this test");
  Pair broken;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    broken.waiter(1).depart(Departure::broken, "broke off (for a reason)");
  });
  CHECK_THROWS(wait_for_ever(broken), "rank 1 broke off (for a reason) while rank 0 waits");
  other.join();
}

TEST("the end of a peer's process ends the wait") {
  int ends[2];
  CHECK(pipe(ends) == 0);
  Pair pair;
  pair.lifeline = ends[0];
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    close(ends[1]);  // end-of-file makes the other end readable
    ends[1] = -1;
  });
  CHECK_THROWS(wait_for_ever(pair), "the process of rank 1 ended while rank 0 waits for rank 1");
  other.join();
  close(ends[0]);
}

TEST("a peer that finished before it left is not missed") {
  Pair pair;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    pair.waiter(1).depart(Departure::left, "left");
  });
  // What the peer stored before it left is seen one look later than its leaving: the wait has to look again.
  bool left = false;
  const auto ready = [&] {
    return std::exchange(left, pair.departures[1].state.load(std::memory_order_acquire) == Departure::left);
  };
  pair.waiter(0).until(1, ready, [] { return std::string(); });
  other.join();
}

TEST("a signal handler's wish ends the wait") {
  Pair pair;
  pair.hooks.polls = 0;
  CHECK_THROWS(wait_for_ever(pair), "interrupted by a signal while rank 0 waits for rank 1");
}
