// The network over an MPI library that is found at run time: fake_mpi.cpp, with handles of both widths.
#include <cstring>
#include <string>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/link/mpi.h"
#include "tests/check.h"

using namespace ringred;

namespace {

struct Library {
  const char* file;
  std::size_t handle_bytes;
};
constexpr Library libraries[] = {{RINGRED_FAKE_MPI_4, 4}, {RINGRED_FAKE_MPI_8, 8}};

MpiSetup setup_of(const Library& library) {
  MpiSetup setup;
  setup.library = library.file;
  setup.handle_bytes = library.handle_bytes;
  setup.communicator = 22;
  setup.byte_type = 11;
  setup.ranks = {5, 6, 99};  // the world's ranks have other numbers in the communicator
  return setup;
}

const std::byte* bytes_of(const std::string& text) {
  return reinterpret_cast<const std::byte*>(text.data());
}

void poll_until_still(Network& network) {
  while (network.poll()) {
  }
}

}  // namespace

TEST("messages arrive in order, by peer and tag, with handles of 4 and of 8 bytes") {
  for (const Library& library : libraries) {
    const auto network = make_mpi_network(setup_of(library));
    const std::string first = "first", second = "the second", other = "another peer's";
    Transfer sends[3], receives[3];
    char rooms[3][32] = {};
    network->send(sends[0], 0, 7, bytes_of(first), first.size());
    network->send(sends[1], 0, 7, bytes_of(second), second.size());
    network->send(sends[2], 1, 7, bytes_of(other), other.size());
    CHECK(sends[0].pending && sends[2].peer == 1);
    const int peers[] = {0, 1, 0};
    for (int i = 0; i < 3; ++i)
      network->receive(receives[i], peers[i], 7, reinterpret_cast<std::byte*>(rooms[i]), sizeof rooms[i]);
    poll_until_still(*network);
    for (int i = 0; i < 3; ++i) CHECK(!sends[i].pending && !receives[i].pending);
    CHECK_EQ(std::string(rooms[0]), first);
    CHECK_EQ(std::string(rooms[1]), other);
    CHECK_EQ(std::string(rooms[2]), second);
    CHECK(!network->poll());
  }
}

TEST("a message that is longer than one of MPI's may be is cut and arrives whole") {
  for (const Library& library : libraries) {
    MpiSetup setup = setup_of(library);
    setup.largest = 1000;
    const auto network = make_mpi_network(setup);
    for (const std::size_t size : {std::size_t{999}, std::size_t{1000}, std::size_t{1001}, std::size_t{4321}}) {
      std::vector<std::byte> sent(size), received(size);
      for (std::size_t i = 0; i < size; ++i) sent[i] = static_cast<std::byte>(i * 7);
      Transfer send, receive;
      network->receive(receive, 1, 3, received.data(), received.size());
      network->send(send, 1, 3, sent.data(), sent.size());
      CHECK_EQ(receive.parts, static_cast<std::uint32_t>((size + 999) / 1000));
      poll_until_still(*network);
      CHECK(!send.pending && !receive.pending && sent == received);
    }
  }
}

TEST("an error of MPI names the rank of the world and what MPI says") {
  for (const Library& library : libraries) {
    const auto network = make_mpi_network(setup_of(library));
    Transfer transfer;
    const std::string text = "text";
    CHECK_THROWS(network->send(transfer, 2, 1, bytes_of(text), text.size()),
                 "MPI could not exchange a message with rank 2: the wire is broken");
    CHECK(!network->poll());
  }
}

TEST("a receive that is cancelled is over without a message") {
  for (const Library& library : libraries) {
    const auto network = make_mpi_network(setup_of(library));
    Transfer receive;
    std::byte room[8];
    network->receive(receive, 0, 9, room, sizeof room);
    CHECK(!network->poll() && receive.pending);
    network->cancel(receive);
    poll_until_still(*network);
    CHECK(!receive.pending);
  }
}

TEST("handles of another width, or a library without MPI, are refused") {
  MpiSetup setup = setup_of(libraries[0]);
  setup.handle_bytes = 2;
  CHECK_THROWS(make_mpi_network(setup), "Handles of MPI have 4 or 8 bytes: here they have 2");
  setup = setup_of(libraries[1]);
  setup.library = "libm.so.6";
  CHECK_THROWS(make_mpi_network(setup), "The MPI library of this process must have MPI_Isend, and has not");
}
