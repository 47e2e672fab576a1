// The network over connected sockets, and engines over it.
#include <chrono>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/base/futex.h"
#include "csrc/link/sockets.h"
#include "tests/check.h"
#include "tests/local/sockets.h"

using namespace ringred;
using check::Sockets;

namespace {

constexpr std::int64_t second = 1'000'000'000;
constexpr std::size_t large_bytes = std::size_t{4} << 20;  // more than the kernel takes at once

const std::byte* bytes_of(std::string_view text) {
  return reinterpret_cast<const std::byte*>(text.data());
}

// A receive with its room.
struct Receive {
  Transfer transfer;
  std::vector<std::byte> room;

  Receive(Network& network, int peer, int tag, std::size_t bytes) : room(bytes) {
    network.receive(transfer, peer, tag, room.data(), bytes);
  }
  std::string text(std::size_t length) const { return {reinterpret_cast<const char*>(room.data()), length}; }
};

template <class Condition>
void poll_until(Network& network, Condition&& condition) {
  const std::int64_t deadline = monotonic_now() + 20 * second;
  while (!condition()) {
    CHECK(monotonic_now() < deadline);
    network.poll();
  }
}

void poll_for_a_while(Network& network) {
  for (const std::int64_t end = monotonic_now() + second / 20; monotonic_now() < end;) network.poll();
}

std::vector<std::byte> sample(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> values(bytes);
  for (std::size_t i = 0; i < bytes; ++i) values[i] = static_cast<std::byte>((i * 7 + i / 251 + seed) & 255);
  return values;
}

// Two ranks and the connection between them.
struct Pair {
  Sockets sockets{2};
  std::unique_ptr<Network> zero = make_socket_network(sockets.of(0)), one = make_socket_network(sockets.of(1));
};

}  // namespace

TEST("messages arrive in order, by peer and tag, whether they were awaited or came early") {
  Sockets sockets(3);
  const auto zero = make_socket_network(sockets.of(0)), one = make_socket_network(sockets.of(1)),
             two = make_socket_network(sockets.of(2));
  const std::string texts[] = {"first", "the second", "of another tag", ""};
  Transfer sends[5];
  Receive awaited(*zero, 1, 7, 32);
  one->send(sends[0], 0, 7, bytes_of(texts[0]), texts[0].size());
  one->send(sends[1], 0, 7, bytes_of(texts[1]), texts[1].size());
  one->send(sends[2], 0, 8, bytes_of(texts[2]), texts[2].size());
  one->send(sends[3], 0, 7, bytes_of(texts[3]), 0);
  two->send(sends[4], 0, 7, bytes_of("of rank 2"), 9);
  for (const Transfer& send : sends) CHECK(!send.pending);  // it is on its way: the bytes may change
  poll_for_a_while(*zero);
  CHECK(!awaited.transfer.pending);
  CHECK_EQ(awaited.text(5), texts[0]);
  Receive other_tag(*zero, 1, 8, 32), second_one(*zero, 1, 7, 32), other_peer(*zero, 2, 7, 32), empty(*zero, 1, 7, 0);
  poll_until(*zero, [&] { return !empty.transfer.pending && !other_peer.transfer.pending; });
  CHECK_EQ(other_tag.text(14), texts[2]);
  CHECK_EQ(second_one.text(10), texts[1]);
  CHECK_EQ(other_peer.text(9), "of rank 2");
  zero->poll();
  CHECK(!zero->poll());
}

TEST("large messages go both ways at once, each into the room that its head asked for") {
  Pair pair;
  const auto exchange = [&](Network& network, int peer) {
    const std::vector<std::byte> mine = sample(large_bytes, static_cast<unsigned>(peer));
    const std::string head = "a body follows";
    Receive note(network, peer, 3, 64);
    Transfer sends[2];
    network.send(sends[0], peer, 3, bytes_of(head), head.size());
    network.send(sends[1], peer, 3, mine.data(), mine.size());
    poll_until(network, [&] { return !note.transfer.pending; });
    Receive body(network, peer, 3, large_bytes);
    poll_until(network, [&] { return !body.transfer.pending && !sends[1].pending; });
    CHECK(body.room == sample(large_bytes, static_cast<unsigned>(1 - peer)));
  };
  std::jthread other([&] { exchange(*pair.one, 0); });
  exchange(*pair.zero, 1);
  other.join();
}

TEST("a receive that is cancelled is over, also in the middle of its message, and the next gets the next message") {
  Pair pair;
  Receive before(*pair.zero, 1, 1, 8), middle(*pair.zero, 1, 2, large_bytes);
  pair.zero->cancel(before.transfer);
  CHECK(!before.transfer.pending);
  const std::vector<std::byte> large = sample(large_bytes, 0);
  Transfer sends[2];
  pair.one->send(sends[0], 0, 2, large.data(), large.size());
  pair.one->send(sends[1], 0, 2, bytes_of("next"), 4);
  CHECK(sends[0].pending);
  poll_for_a_while(*pair.zero);
  CHECK(middle.transfer.pending);
  pair.zero->cancel(middle.transfer);
  CHECK(!middle.transfer.pending);
  const std::vector<std::byte> room = middle.room;
  Receive next(*pair.zero, 1, 2, 8);
  poll_until(*pair.zero, [&] {
    pair.one->poll();
    return !next.transfer.pending;
  });
  CHECK_EQ(next.text(4), "next");
  CHECK(middle.room == room);
}

TEST("a rank that leaves is no loss, and what it sent last arrives even if it never read what it got") {
  Pair pair;
  const std::vector<std::byte> last = sample(large_bytes, 5);
  Transfer unread, send;
  pair.zero->send(unread, 1, 1, last.data(), 1000);
  pair.one->send(send, 0, 1, last.data(), last.size());
  std::jthread leaver([&] {
    pair.one->leave(monotonic_now() + 20 * second);
    pair.sockets.end(1);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  Receive receive(*pair.zero, 1, 1, last.size());
  poll_until(*pair.zero, [&] { return !receive.transfer.pending; });
  leaver.join();
  CHECK(receive.room == last && !send.pending);
  poll_for_a_while(*pair.zero);
  Transfer late;
  pair.zero->send(late, 1, 1, last.data(), last.size());
  CHECK(!late.pending);  // nobody is there to get it
}

TEST("whoever leaves after the others does not wait for them") {
  Pair pair;
  pair.one->leave(monotonic_now() + 20 * second);
  pair.sockets.end(1);
  const std::int64_t start = monotonic_now();
  pair.zero->leave(start + 20 * second);
  CHECK(monotonic_now() - start < 5 * second);
}

TEST("to leave takes no longer than it may where a peer does not read") {
  Pair pair;
  const std::vector<std::byte> large = sample(large_bytes, 0);
  Transfer send;
  pair.one->send(send, 0, 1, large.data(), large.size());
  const std::int64_t start = monotonic_now();
  pair.one->leave(start + second / 5);
  CHECK(monotonic_now() - start >= second / 5 && monotonic_now() - start < 5 * second);
}

TEST("a connection that ends without a farewell is a loss, told once and by name, after all that came before") {
  Pair pair;
  Transfer sends[2];
  const std::vector<std::byte> large = sample(large_bytes, 0);
  pair.one->send(sends[0], 0, 1, bytes_of("last words"), 10);
  pair.zero->send(sends[1], 1, 1, large.data(), large.size());
  CHECK(sends[1].pending);
  pair.sockets.end(1);
  Receive receive(*pair.zero, 1, 1, 16);
  const auto until_it_throws = [&] { poll_until(*pair.zero, [] { return false; }); };
  CHECK_THROWS(until_it_throws(), "The connection to rank 1 on another node has broken");
  CHECK(!receive.transfer.pending && !sends[1].pending);
  CHECK_EQ(receive.text(10), "last words");
  CHECK(!(pair.zero->poll(), pair.zero->poll()));
  CHECK_THROWS(Receive(*pair.zero, 1, 1, 16), "The connection to rank 1 on another node has broken");
  Transfer late;
  pair.zero->send(late, 1, 1, large.data(), 1);
  CHECK(!late.pending);
}

TEST("a message that does not fit its room is refused with both sizes") {
  for (const bool early : {false, true}) {
    Pair pair;
    Transfer send;
    const auto receive = [&] {
      if (early) poll_for_a_while(*pair.zero);
      Receive short_one(*pair.zero, 1, 1, 4);
      poll_until(*pair.zero, [&] { return !short_one.transfer.pending; });
    };
    pair.one->send(send, 0, 1, bytes_of("too long"), 8);
    CHECK_THROWS(receive(), "one of 8 bytes came from rank 1 for 4 bytes of room");
  }
}
