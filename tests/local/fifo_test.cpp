// The FIFO between two ends, on one thread and on two.
#include "csrc/link/fifo.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/check.h"

using namespace ringred;

namespace {

// Zeroed memory, as a new segment has it.
struct Memory {
  Memory(std::size_t slots, std::size_t slot_bytes) : lines(Fifo::memory_bytes(slots, slot_bytes) / sizeof(Line)) {}
  std::byte* begin() { return lines.data()->bytes; }

  struct alignas(Fifo::line_bytes) Line {
    std::byte bytes[Fifo::line_bytes]{};
  };
  std::vector<Line> lines;
};

void send(Fifo& fifo, const std::string& text) {
  std::memcpy(fifo.free_slot(), text.data(), text.size());
  fifo.publish(text.size());
}

std::string take(Fifo& fifo) {
  std::size_t bytes = 0;
  const std::byte* const slot = fifo.full_slot(bytes);
  if (slot == nullptr) return "nothing";
  std::string text(reinterpret_cast<const char*>(slot), bytes);
  fifo.release();
  return text;
}

}  // namespace

TEST("zeroed memory is empty, and holds as many messages as it has slots") {
  for (std::size_t slots : {1U, 2U, 3U, 8U, 30U}) {
    Memory memory(slots, 100);
    Fifo sender(memory.begin(), slots, 100), taker(memory.begin(), slots, 100);
    CHECK_EQ(take(taker), std::string("nothing"));
    for (std::size_t round = 0; round < 3; ++round) {
      for (std::size_t i = 0; i < slots; ++i) send(sender, std::string(100 - i, static_cast<char>('a' + i)));
      CHECK(sender.free_slot() == nullptr);
      for (std::size_t i = 0; i < slots; ++i) {
        CHECK_EQ(take(taker), std::string(100 - i, static_cast<char>('a' + i)));
        CHECK(sender.free_slot() != nullptr);
      }
      CHECK_EQ(take(taker), std::string("nothing"));
    }
  }
}

TEST("a message is there until it is released, and empty ones count") {
  Memory memory(2, 64);
  Fifo sender(memory.begin(), 2, 64), taker(memory.begin(), 2, 64);
  send(sender, "");
  send(sender, "x");
  std::size_t bytes = 7;
  CHECK(taker.full_slot(bytes) != nullptr && bytes == 0);
  CHECK(taker.full_slot(bytes) != nullptr && bytes == 0);
  CHECK(sender.free_slot() == nullptr);
  taker.release();
  CHECK_EQ(take(taker), std::string("x"));
}

TEST("new ends go on where the old ones stood") {
  Memory memory(2, 64);
  {
    Fifo sender(memory.begin(), 2, 64), taker(memory.begin(), 2, 64);
    send(sender, "a");
    send(sender, "b");
    CHECK_EQ(take(taker), std::string("a"));
  }
  Fifo sender(memory.begin(), 2, 64), taker(memory.begin(), 2, 64);
  send(sender, "c");
  CHECK(sender.free_slot() == nullptr);
  CHECK_EQ(take(taker), std::string("b"));
  CHECK_EQ(take(taker), std::string("c"));
}

TEST("slots and words are aligned to lines") {
  CHECK_EQ(Fifo::memory_bytes(2, 64), 64U + 64 + 2 * 64);
  CHECK_EQ(Fifo::memory_bytes(8, 1), 128U + 64 + 8 * 64);
  Memory memory(2, 64);
  CHECK_THROWS(Fifo(memory.begin() + 8, 1, 64), "aligned to 64 bytes");
  CHECK_THROWS(Fifo(memory.begin(), 0, 64), "got 0 slots");
}

TEST("what one thread sends another takes, whole, once and in order") {
  for (std::size_t slots : {1U, 2U, 7U}) {
    Memory memory(slots, 64);
    const std::uint64_t messages = 20000;
    std::thread sending([&] {
      Fifo fifo(memory.begin(), slots, 64);
      for (std::uint64_t number = 0; number < messages;) {
        std::byte* const slot = fifo.free_slot();
        if (slot == nullptr) {
          std::this_thread::yield();
          continue;
        }
        const std::size_t words = 1 + number % 8;
        for (std::size_t i = 0; i < words; ++i) std::memcpy(slot + 8 * i, &number, 8);
        fifo.publish(8 * words);
        ++number;
      }
    });
    Fifo fifo(memory.begin(), slots, 64);
    std::uint64_t wrong = 0;
    for (std::uint64_t number = 0; number < messages;) {
      std::size_t bytes = 0;
      const std::byte* const slot = fifo.full_slot(bytes);
      if (slot == nullptr) {
        std::this_thread::yield();
        continue;
      }
      wrong += bytes != 8 * (1 + number % 8);
      for (std::size_t i = 0; i < bytes; i += 8) wrong += std::memcmp(slot + i, &number, 8) != 0;
      fifo.release();
      ++number;
    }
    sending.join();
    CHECK_EQ(wrong, 0U);
  }
}
