#include "csrc/link/sockets.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <utility>

#include "csrc/base/error.h"
#include "csrc/base/futex.h"

namespace ringred {
namespace {

// What stands before the bytes of a message.
struct Head {
  std::uint32_t tag;
  std::uint32_t is_farewell;  // nothing follows, also no further message
  std::uint64_t bytes;
};

struct Outgoing {
  Transfer* transfer;  // none for a farewell
  Head head;
  const std::byte* data;
  std::size_t sent;  // of head and data
};

struct Awaited {
  Transfer* transfer;
  std::byte* data;
  std::size_t room;
};

// Messages of one sender and tag. At most one of the two has something in it.
struct Channel {
  std::deque<Awaited> awaited;
  std::deque<std::vector<std::byte>> early;
};

// The message that is being read, once its head is there.
struct Incoming {
  Head head{};
  std::size_t read = 0;          // of head and data
  Transfer* transfer = nullptr;  // whose room it is read into; none: into `kept`
  std::byte* data = nullptr;
  std::vector<std::byte> kept;
  bool unwanted = false;  // cancelled in the middle: nobody gets it
};

enum class State { open, left, lost };

struct Connection {
  int peer = -1;
  int descriptor = -1;
  State state = State::open;
  bool said_farewell = false;   // the peer
  bool awaits_writing = false;  // asked for by epoll
  std::deque<Outgoing> outgoing;
  Incoming incoming;
  std::map<int, Channel> channels;  // by tag
};

void end(Transfer* transfer) {
  if (transfer != nullptr) transfer->pending = false;
}

class SocketNetwork : public Network {
 public:
  explicit SocketNetwork(const std::vector<int>& sockets)
      : epoll_(epoll_create1(EPOLL_CLOEXEC)), connections_(sockets.size()) {
    if (epoll_ < 0) fail_with("epoll_create1", errno);
    for (std::size_t peer = 0; peer < sockets.size(); ++peer) {
      connections_[peer].peer = static_cast<int>(peer);
      connections_[peer].descriptor = sockets[peer];
      if (sockets[peer] >= 0) watch(connections_[peer], EPOLL_CTL_ADD);
    }
  }
  ~SocketNetwork() override { close(epoll_); }
  SocketNetwork(const SocketNetwork&) = delete;
  SocketNetwork& operator=(const SocketNetwork&) = delete;

  // To whom nothing can be sent any more, nothing has to be: why, the reading side finds out.
  void send(Transfer& transfer, int peer, int tag, const std::byte* data, std::size_t bytes) override {
    Connection& connection = connection_to(peer);
    transfer = {connection.state == State::open, peer, 1};
    if (connection.state != State::open) return;
    push(connection, {&transfer, {static_cast<std::uint32_t>(tag), 0, bytes}, data, 0});
  }

  void receive(Transfer& transfer, int peer, int tag, std::byte* data, std::size_t room) override {
    Connection& connection = connection_to(peer);
    if (connection.state == State::lost) throw loss_of(connection, 0);
    transfer = {true, peer, 1};
    Channel& channel = connection.channels[tag];
    if (channel.early.empty()) {
      channel.awaited.push_back({&transfer, data, room});
      return;
    }
    const std::vector<std::byte> message = std::move(channel.early.front());
    channel.early.pop_front();
    deliver({&transfer, data, room}, message);
    moved_ = true;
  }

  bool poll() override {
    std::array<epoll_event, 64> events;
    const int ready = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), 0);
    for (int i = 0; i < ready; ++i) {
      const epoll_event& event = events[static_cast<std::size_t>(i)];
      Connection& connection = connections_[event.data.u32];
      if ((event.events & EPOLLOUT) != 0) write(connection);
      if ((event.events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0) read(connection);
    }
    return std::exchange(moved_, false);
  }

  void cancel(Transfer& transfer) override {
    if (!transfer.pending) return;
    Connection& connection = connection_to(transfer.peer);
    for (auto& [tag, channel] : connection.channels)
      std::erase_if(channel.awaited, [&](const Awaited& one) { return one.transfer == &transfer; });
    Incoming& incoming = connection.incoming;
    if (incoming.transfer == &transfer) {  // the rest of it goes elsewhere
      incoming.transfer = nullptr;
      incoming.unwanted = true;
      incoming.kept.resize(incoming.head.bytes);
      incoming.data = incoming.kept.data();
    }
    transfer.pending = false;
  }

  // A socket that is closed with something unread tells the peer to drop what has not arrived there: so it is closed
  // only after what was sent has arrived. Whoever left before takes nothing: what it refused stays counted as unsent.
  void leave(std::int64_t deadline) override {
    for (Connection& connection : connections_)
      if (connection.descriptor >= 0 && connection.state == State::open)
        push(connection, {nullptr, {0, 1, 0}, nullptr, 0});
    const auto on_its_way = [&](Connection& connection) {
      if (connection.descriptor < 0 || connection.state != State::open) return false;
      write(connection);
      pollfd ended{connection.descriptor, 0, 0};
      if (::poll(&ended, 1, 0) != 0) return false;
      int bytes = 0;
      return !connection.outgoing.empty() || (ioctl(connection.descriptor, SIOCOUTQ, &bytes) == 0 && bytes > 0);
    };
    while (std::any_of(connections_.begin(), connections_.end(), on_its_way) && monotonic_now() < deadline)
      sched_yield();
  }

 private:
  Connection& connection_to(int peer) { return connections_[static_cast<std::size_t>(peer)]; }

  void watch(Connection& connection, int operation) {
    epoll_event event{};
    event.events = EPOLLIN | (connection.awaits_writing ? std::uint32_t{EPOLLOUT} : 0u);
    event.data.u32 = static_cast<std::uint32_t>(connection.peer);
    if (epoll_ctl(epoll_, operation, connection.descriptor, &event) != 0) fail_with("epoll_ctl", errno);
  }

  void push(Connection& connection, Outgoing outgoing) {
    connection.outgoing.push_back(outgoing);
    if (connection.outgoing.size() == 1) write(connection);
  }

  void write(Connection& connection) {
    while (!connection.outgoing.empty()) {
      Outgoing& outgoing = connection.outgoing.front();
      const std::size_t whole = sizeof(Head) + outgoing.head.bytes;
      const ssize_t written = write_some(connection.descriptor, outgoing);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      if (written < 0) {
        drop_outgoing(connection);
        break;
      }
      outgoing.sent += static_cast<std::size_t>(written);
      if (outgoing.sent < whole) continue;
      end(outgoing.transfer);
      connection.outgoing.pop_front();
      moved_ = true;
    }
    if (connection.awaits_writing == !connection.outgoing.empty()) return;
    connection.awaits_writing = !connection.outgoing.empty();
    watch(connection, EPOLL_CTL_MOD);
  }

  static ssize_t write_some(int descriptor, Outgoing& outgoing) {
    iovec parts[2];
    int count = 0;
    const auto add = [&](const std::byte* data, std::size_t bytes) {
      if (bytes > 0) parts[count++] = {const_cast<std::byte*>(data), bytes};
    };
    const std::size_t of_head = std::min(outgoing.sent, sizeof(Head)), of_data = outgoing.sent - of_head;
    add(reinterpret_cast<const std::byte*>(&outgoing.head) + of_head, sizeof(Head) - of_head);
    add(outgoing.data + of_data, outgoing.head.bytes - of_data);
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = static_cast<std::size_t>(count);
    return sendmsg(descriptor, &message, MSG_NOSIGNAL);
  }

  void drop_outgoing(Connection& connection) {
    for (const Outgoing& outgoing : connection.outgoing) end(outgoing.transfer);
    connection.outgoing.clear();
    moved_ = true;
  }

  // Up to the end of a message, or of what is there.
  void read(Connection& connection) {
    Incoming& incoming = connection.incoming;
    while (connection.state == State::open) {
      const bool in_head = incoming.read < sizeof(Head);
      std::byte* to = in_head ? reinterpret_cast<std::byte*>(&incoming.head) + incoming.read
                              : incoming.data + (incoming.read - sizeof(Head));
      const std::size_t wanted = (in_head ? sizeof(Head) : sizeof(Head) + incoming.head.bytes) - incoming.read;
      const ssize_t got = recv(connection.descriptor, to, wanted, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (got <= 0) return end_of_stream(connection, got == 0 ? 0 : errno);
      incoming.read += static_cast<std::size_t>(got);
      if (incoming.read == sizeof(Head)) begin_message(connection);
      if (incoming.read < sizeof(Head) + incoming.head.bytes) continue;
      end_message(connection);
      return;
    }
  }

  void begin_message(Connection& connection) {
    Incoming& incoming = connection.incoming;
    if (incoming.head.is_farewell != 0) return;
    auto& awaited = connection.channels[static_cast<int>(incoming.head.tag)].awaited;
    if (awaited.empty()) {
      incoming.kept.resize(incoming.head.bytes);
      incoming.data = incoming.kept.data();
      return;
    }
    check_fits(awaited.front(), incoming.head.bytes, connection.peer);
    incoming.transfer = awaited.front().transfer;
    incoming.data = awaited.front().data;
    awaited.pop_front();
  }

  void end_message(Connection& connection) {
    Incoming message = std::exchange(connection.incoming, {});
    if (message.head.is_farewell != 0) {
      connection.said_farewell = true;
      return;
    }
    moved_ = true;
    if (message.transfer != nullptr || message.unwanted) return end(message.transfer);
    Channel& channel = connection.channels[static_cast<int>(message.head.tag)];
    if (channel.awaited.empty()) {
      channel.early.push_back(std::move(message.kept));
      return;
    }
    const Awaited awaited = channel.awaited.front();  // since the message began
    channel.awaited.pop_front();
    deliver(awaited, message.kept);
  }

  static void deliver(const Awaited& awaited, const std::vector<std::byte>& message) {
    check_fits(awaited, message.size(), awaited.transfer->peer);
    if (!message.empty()) std::memcpy(awaited.data, message.data(), message.size());
    end(awaited.transfer);
  }

  static void check_fits(const Awaited& awaited, std::size_t bytes, int peer) {
    if (bytes > awaited.room)
      fail_system("A message must fit the room that its receiver gives it: one of " + std::to_string(bytes) +
                  " bytes came from rank " + std::to_string(peer) + " for " + std::to_string(awaited.room) +
                  " bytes of room");
  }

  void end_of_stream(Connection& connection, int error) {
    const bool whole = connection.incoming.read == 0;
    connection.state = whole && connection.said_farewell ? State::left : State::lost;
    epoll_ctl(epoll_, EPOLL_CTL_DEL, connection.descriptor, nullptr);
    drop_outgoing(connection);
    if (connection.state == State::lost) throw loss_of(connection, error);
  }

  static Error loss_of(const Connection& connection, int error) {
    return Error(ErrorKind::peer_lost,
                 "The connection to rank " + std::to_string(connection.peer) + " on another node has broken" +
                     (error == 0 ? std::string() : std::string(" (") + std::strerror(error) + ")") +
                     ": its process has ended, or its node or the network has failed");
  }

  [[noreturn]] static void fail_with(const char* what, int error) {
    fail_system(std::string("The connections between nodes could not be watched: ") + what + " says " +
                std::strerror(error) + ". 'ulimit -n' says how many descriptors a process may have.");
  }

  const int epoll_;
  std::vector<Connection> connections_;  // by rank
  bool moved_ = false;                   // a transfer is over since the last poll
};

}  // namespace

std::unique_ptr<Network> make_socket_network(std::vector<int> sockets) {
  return std::make_unique<SocketNetwork>(sockets);
}

}  // namespace ringred
