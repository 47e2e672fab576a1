// Connected sockets between ranks that are threads of one process, as the host language makes them between nodes.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

namespace ringred::check {

inline void require(bool condition) {
  if (!condition) throw std::runtime_error("a socket could not be made");
}

// What the kernel takes at once is little, so that what is large is so everywhere.
inline int small_socket() {
  const int made = socket(AF_INET, SOCK_STREAM, 0), bytes = 64 << 10;
  require(made >= 0 && setsockopt(made, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes) == 0);
  require(setsockopt(made, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes) == 0);
  return made;
}

inline std::pair<int, int> connected_pair() {
  const int listener = small_socket();
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* general = reinterpret_cast<sockaddr*>(&address);
  require(bind(listener, general, length) == 0 && listen(listener, 1) == 0);
  require(getsockname(listener, general, &length) == 0);
  const int one = small_socket();
  require(connect(one, general, length) == 0);
  const int other = accept(listener, nullptr, nullptr);
  close(listener);
  for (const int end : {one, other}) {
    const int on = 1;
    require(end >= 0 && fcntl(end, F_SETFL, O_NONBLOCK) == 0);
    require(setsockopt(end, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  }
  return {one, other};
}

// One connection for each two ranks.
class Sockets {
 public:
  Sockets() = default;
  explicit Sockets(int size) { connect(size); }
  ~Sockets() {
    for (std::size_t rank = 0; rank < ends_.size(); ++rank) end(static_cast<int>(rank));
  }
  Sockets(const Sockets&) = delete;
  Sockets& operator=(const Sockets&) = delete;

  void connect(int size) {
    ends_.assign(static_cast<std::size_t>(size), std::vector<int>(static_cast<std::size_t>(size), -1));
    for (std::size_t one = 0; one < ends_.size(); ++one)
      for (std::size_t other = one + 1; other < ends_.size(); ++other)
        std::tie(ends_[one][other], ends_[other][one]) = connected_pair();
  }

  const std::vector<int>& of(int rank) const { return ends_[static_cast<std::size_t>(rank)]; }

  // What the end of its process does.
  void end(int rank) {
    for (int& socket : ends_[static_cast<std::size_t>(rank)])
      if (socket >= 0) close(std::exchange(socket, -1));
  }

 private:
  std::vector<std::vector<int>> ends_;
};

}  // namespace ringred::check
