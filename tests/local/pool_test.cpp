// Memory of the arena for another library: who gets which block, and where it goes back.
#include "csrc/memory/pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tests/check.h"

using namespace ringred;

extern "C" void* sample_allocate(std::size_t bytes);
extern "C" void sample_free(void* data);

namespace {

constexpr std::size_t large = 100'000, small = 5000;

std::shared_ptr<Arena> make_arena() {
  return std::make_shared<Arena>(Segment::create(std::size_t{16} << 20, false), 4096);
}

bool lies_in(Arena& arena, const void* data) {
  return arena.location(data, 1) != 0;
}

// Frees what it has, unless it was released.
struct Memory {
  explicit Memory(std::size_t bytes) : data(sample_allocate(bytes)) { std::memset(data, 1, bytes); }
  Memory(Memory&& other) noexcept : data(std::exchange(other.data, nullptr)) {}
  ~Memory() { sample_free(data); }
  void* data;
};

}  // namespace

TEST("the library takes memory from pools") {
  CHECK(!replace_allocator("libnobody"));
  CHECK(replace_allocator("libsample_allocator"));
}

TEST("an armed pool gives blocks of its sizes, as many as it was made for, and to nobody else") {
  auto arena = make_arena();
  Pool pool(arena, {large, large, small});
  CHECK(!lies_in(*arena, Memory(large).data));  // not armed
  pool.arm(true);
  {
    const Memory one(large), two(large), three(large), other(large + 1), less(small);
    CHECK(lies_in(*arena, one.data) && lies_in(*arena, two.data) && lies_in(*arena, less.data));
    CHECK(!lies_in(*arena, three.data) && !lies_in(*arena, other.data));
    CHECK(pool.holds(one.data, large) && !pool.holds(one.data, small) && !pool.holds(three.data, large));
    CHECK(!pool.holds(static_cast<std::byte*>(one.data) + 64, large));
    CHECK_EQ(pool.blocks(), 3u);
    void* own = std::malloc(large);
    CHECK(!lies_in(*arena, own));
    std::free(own);
  }
  const void* place = Memory(large).data;
  CHECK(lies_in(*arena, place) && !pool.holds(place, large));
  CHECK_EQ(pool.blocks(), 3u);
  pool.arm(false);
  CHECK(!lies_in(*arena, Memory(large).data));
}

TEST("blocks go back after they are disarmed, and after the pool is gone") {
  auto arena = make_arena();
  auto pool = std::make_unique<Pool>(arena, std::vector<std::size_t>{large, large});
  pool->arm(true);
  Memory one(large);
  auto two = std::make_unique<Memory>(large);
  pool->arm(false);
  two.reset();
  CHECK(pool->holds(one.data, large));
  std::weak_ptr<Arena> watched = arena;
  arena.reset();
  pool.reset();
  CHECK(!watched.expired());  // `one` lies in it
  std::memset(one.data, 2, large);
  {
    const Memory gone(std::move(one));
  }
  CHECK(watched.expired());
  const Memory after(large);  // the armed count is right
}

TEST("what a late peer may still write to is given to nobody") {
  auto arena = make_arena();
  Pool pool(arena, {large});
  pool.arm(true);
  {
    const Memory one(large);
    CHECK(lies_in(*arena, one.data));
  }
  arena->retire();
  CHECK(!lies_in(*arena, Memory(large).data));
}

TEST("a full arena is no error") {
  auto arena = std::make_shared<Arena>(Segment::create(std::size_t{1} << 20, false), 4096);
  Pool pool(arena, {std::size_t{2} << 20, small});
  pool.arm(true);
  CHECK(!lies_in(*arena, Memory(std::size_t{2} << 20).data));
  CHECK(lies_in(*arena, Memory(small).data));
}

TEST("several pools") {
  auto first = make_arena(), second = make_arena();
  Pool one(first, {large}), two(second, {large, small});
  one.arm(true);
  two.arm(true);
  const Memory a(large), b(large), c(large), d(small);
  CHECK(lies_in(*first, a.data) && lies_in(*second, b.data) && lies_in(*second, d.data));
  CHECK(!lies_in(*first, c.data) && !lies_in(*second, c.data));
  CHECK(one.holds(a.data, large) && !two.holds(a.data, large));  // another arena
  const Pool third(first, {});
  CHECK(third.holds(a.data, large));
}

TEST("a forked child takes nothing, and returns what its parent has without touching it") {
  auto arena = make_arena();
  Pool pool(arena, {large, large});
  pool.arm(true);
  const Memory before(large);
  const pid_t child = fork();
  if (child == 0) {
    sample_free(before.data);
    void* own = sample_allocate(large);
    const bool right = !lies_in(*arena, own);
    sample_free(own);
    _exit(right ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(pool.holds(before.data, large));
}

TEST("threads take and return blocks while the pool is armed and disarmed") {
  auto arena = make_arena();
  Pool pool(arena, {large, large, large, small});
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed)
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      while (!stop) {
        std::vector<Memory> mine;
        for (unsigned i = 0; i < random() % 4; ++i) mine.emplace_back(random() % 2 ? large : small);
        for (const Memory& one : mine) CHECK(static_cast<const char*>(one.data)[small - 1] == 1);
      }
    });
  for (int i = 0; i < 300; ++i) {
    pool.arm(i % 3 != 0);
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(pool.blocks() <= 4);
}
