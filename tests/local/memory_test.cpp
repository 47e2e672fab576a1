// Segments, the arena and the limits.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "csrc/memory/arena.h"
#include "csrc/memory/limits.h"
#include "csrc/memory/segment.h"
#include "tests/check.h"

using namespace ringred;

namespace {

constexpr std::size_t mebibyte = std::size_t{1} << 20;

std::shared_ptr<Arena> small_arena() {
  return std::make_shared<Arena>(Segment::create(64 * mebibyte, true), 2 * mebibyte);
}

// A directory with a /proc and a /sys of our own, removed at the end.
class FakeRoot {
 public:
  FakeRoot() {
    path_ = std::filesystem::temp_directory_path() / "ringred-test-XXXXXX";
    CHECK(mkdtemp(path_.data()) != nullptr);
  }
  ~FakeRoot() { std::filesystem::remove_all(path_); }
  void write(const std::string& file, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(path_ + file).parent_path());
    std::ofstream(path_ + file) << text;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

TEST("two mappings of a segment are one memory") {
  Segment mine = Segment::create(8 * mebibyte, false);
  mine.commit(mebibyte, 4096);
  Segment peers = Segment::map(mine.descriptor());
  CHECK_EQ(peers.size(), mine.size());
  std::memcpy(mine.base() + mebibyte, "shared", 7);
  CHECK_EQ(std::string(reinterpret_cast<char*>(peers.base() + mebibyte)), "shared");
}

TEST("a segment's size is sealed, and only sealed segments are mapped") {
  Segment segment = Segment::create(mebibyte, false);
  CHECK(ftruncate(segment.descriptor(), 0) != 0);
  int ends[2];
  CHECK(pipe(ends) == 0);
  CHECK_THROWS(Segment::map(ends[0]), "must be a sealed memfd");
  close(ends[0]);
  close(ends[1]);
}

TEST("arrays are zero, apart, aligned, and found by their offset") {
  auto arena = small_arena();
  auto small = arena->allocate(100), large = arena->allocate(3 * mebibyte);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(large->data()) % (2 * mebibyte), 0u);
  for (std::size_t i = 0; i < 100; ++i) CHECK(small->data()[i] == std::byte{0});
  std::memset(large->data(), 1, large->size());
  CHECK(small->data()[99] == std::byte{0});
  const std::size_t location = arena->location(large->data() + 5, 10);
  CHECK_EQ(location, static_cast<std::size_t>(large->data() - arena->segment().base()) + 6);
  int private_word = 0;
  CHECK_EQ(arena->location(&private_word, sizeof private_word), 0u);
  CHECK_EQ(arena->location(arena->segment().base(), 64), 0u);
  CHECK_EQ(arena->location(arena->segment().base() + arena->segment().size() - 4, 8), 0u);
}

TEST("freed memory is reused, reads as zero and joins its neighbours") {
  auto arena = small_arena();
  for (int round = 0; round < 50; ++round) {
    auto first = arena->allocate(20 * mebibyte), second = arena->allocate(20 * mebibyte), third = arena->allocate(300);
    CHECK(first->data()[7] == std::byte{0});
    first->data()[7] = std::byte{1};
    if (round % 2) first.reset();
    second.reset();
  }
  CHECK_EQ(arena->allocate(60 * mebibyte)->size(), 60 * mebibyte);
}

TEST("an array outlives the arena's other owners") {
  auto arena = small_arena();
  auto block = arena->allocate(4096);
  arena.reset();
  std::memset(block->data(), 7, 4096);
  CHECK(block->data()[4095] == std::byte{7});
}

TEST("a retired arena keeps what is freed") {
  auto arena = small_arena();
  auto block = arena->allocate(4096);
  std::byte* place = block->data();
  std::memset(place, 7, 4096);
  arena->retire();
  block.reset();
  CHECK(place[0] == std::byte{7});
  CHECK(arena->allocate(4096)->data() != place);
}

TEST("what does not fit is refused in words, and loses nothing") {
  auto arena = small_arena();
  auto block = arena->allocate(40 * mebibyte);
  CHECK_THROWS(arena->allocate(40 * mebibyte), "no free range of 40.0 MiB in its 62.0 MiB");
  CHECK_THROWS(arena->allocate(std::size_t{1} << 45), "does not fit");
  CHECK_EQ(arena->allocate(20 * mebibyte)->size(), 20 * mebibyte);
}

TEST("the tightest limit counts") {
  const FakeRoot root;
  root.write("/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n");
  CHECK_EQ(memory_limit(root.path()).available, std::size_t{5000} << 10);
  root.write("/sys/fs/cgroup/memory.max", "max\n");
  root.write("/sys/fs/cgroup/memory.current", "100\n");
  CHECK_EQ(memory_limit(root.path()).source, "MemAvailable");
  root.write("/sys/fs/cgroup/memory.max", "1000000\n");
  CHECK_EQ(memory_limit(root.path()).available, 999900u);
  CHECK_THROWS(check_memory_available(2 * mebibyte, root.path()),
               "needs 2.0 MiB of shared memory, and the container's memory limit leaves 976.5 KiB");
  check_memory_available(999900, root.path());
}

TEST("more than the machine has is refused before the system is asked") {
  const std::size_t memory = machine_memory();
  auto arena = std::make_shared<Arena>(Segment::create(2 * memory, false), 2 * mebibyte);
  CHECK_THROWS(arena->allocate(memory + memory / 2), "of shared memory, and ");
}
