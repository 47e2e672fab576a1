#include "csrc/link/mpi.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "csrc/base/error.h"

namespace ringred {
namespace {

constexpr int success = 0;  // MPI_SUCCESS is 0 by the standard (MPI 4.1, 9.4)

// Room for an MPI_Status of any implementation: 20 to 32 bytes.
struct alignas(16) Status {
  std::array<std::byte, 64> bytes;
};

class Library {
 public:
  explicit Library(const std::string& file)
      : handle_(file.empty() ? nullptr : dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD)) {}

  template <class Function>
  Function find(const char* name) const {
    void* found = dlsym(handle_ == nullptr ? RTLD_DEFAULT : handle_, name);
    if (found == nullptr)
      fail_system(std::string("The MPI library of this process must have ") + name +
                  ", and has not. Set MPI4PY_LIBMPI to the library that the launcher belongs to.");
    return reinterpret_cast<Function>(found);
  }

 private:
  void* handle_;  // never closed: the library stays loaded
};

template <class Handle>
struct Functions {
  int (*isend)(const void*, int, Handle, int, int, Handle, Handle*);
  int (*irecv)(void*, int, Handle, int, int, Handle, Handle*);
  int (*testsome)(int, Handle*, int*, int*, Status*);
  int (*cancel)(Handle*);
  int (*error_string)(int, char*, int*);
  int (*finalized)(int*);

  explicit Functions(const Library& library)
      : isend(library.find<decltype(isend)>("MPI_Isend")),
        irecv(library.find<decltype(irecv)>("MPI_Irecv")),
        testsome(library.find<decltype(testsome)>("MPI_Testsome")),
        cancel(library.find<decltype(cancel)>("MPI_Cancel")),
        error_string(library.find<decltype(error_string)>("MPI_Error_string")),
        finalized(library.find<decltype(finalized)>("MPI_Finalized")) {}
};

template <class Handle>
Handle handle_of(std::uint64_t value) {
  if constexpr (sizeof(Handle) == 8)
    return reinterpret_cast<Handle>(value);
  else
    return static_cast<Handle>(value);
}

template <class Handle>
class MpiNetwork : public Network {
 public:
  explicit MpiNetwork(MpiSetup setup)
      : setup_(std::move(setup)),
        functions_(Library(setup_.library)),
        communicator_(handle_of<Handle>(setup_.communicator)),
        byte_(handle_of<Handle>(setup_.byte_type)) {}

  void send(Transfer& transfer, int peer, int tag, const std::byte* data, std::size_t bytes) override {
    begin(transfer, peer, bytes, [&](std::size_t at, int count, Handle* request) {
      return functions_.isend(data + at, count, byte_, number_of(peer), tag, communicator_, request);
    });
  }

  void receive(Transfer& transfer, int peer, int tag, std::byte* data, std::size_t room) override {
    begin(transfer, peer, room, [&](std::size_t at, int count, Handle* request) {
      return functions_.irecv(data + at, count, byte_, number_of(peer), tag, communicator_, request);
    });
  }

  bool poll() override {
    if (requests_.empty()) return false;
    const auto count = static_cast<int>(requests_.size());
    int completed = 0;
    const int error = functions_.testsome(count, requests_.data(), &completed, indices_.data(), statuses_.data());
    // MPI_UNDEFINED, where no request is active, is negative in all implementations.
    if (error != success) fail(error, -1);
    for (int i = 0; i < completed; ++i) end_part(static_cast<std::size_t>(indices_[static_cast<std::size_t>(i)]));
    if (completed > 0) compact();
    return completed > 0;
  }

  // A receive that has met its message cannot be cancelled, and may never end: nobody waits for it.
  void cancel(Transfer& transfer) override {
    for (std::size_t at = 0; at < owners_.size(); ++at)
      if (owners_[at] == &transfer && !has_ended()) functions_.cancel(&requests_[at]);
  }

  bool any_thread() const override { return setup_.any_thread; }

 private:
  // A long message is cut into several of the same tag, which arrive in their order.
  template <class Begin>
  void begin(Transfer& transfer, int peer, std::size_t bytes, Begin&& one) {
    transfer = {true, peer, 0};
    std::size_t at = 0;
    do {
      const std::size_t part = std::min(bytes - at, setup_.largest);
      requests_.emplace_back();
      owners_.push_back(&transfer);
      ++transfer.parts;
      const int error = one(at, static_cast<int>(part), &requests_.back());
      if (error != success) {
        requests_.pop_back();
        owners_.pop_back();
        if (--transfer.parts == 0) transfer.pending = false;
        fail(error, peer);
      }
      at += part;
    } while (at < bytes);
    indices_.resize(requests_.size());
    statuses_.resize(requests_.size());
  }

  void end_part(std::size_t at) {
    Transfer& transfer = *owners_[at];
    if (--transfer.parts == 0) transfer.pending = false;
    owners_[at] = nullptr;
  }

  void compact() {
    std::size_t kept = 0;
    for (std::size_t at = 0; at < owners_.size(); ++at) {
      if (owners_[at] == nullptr) continue;
      owners_[kept] = owners_[at];
      requests_[kept++] = requests_[at];
    }
    owners_.resize(kept);
    requests_.resize(kept);
  }

  int number_of(int peer) const { return setup_.ranks[static_cast<std::size_t>(peer)]; }

  bool has_ended() const {
    int ended = 0;
    return functions_.finalized(&ended) != success || ended != 0;
  }

  [[noreturn]] void fail(int error, int peer) const {
    std::array<char, 1024> text{};  // MPI_MAX_ERROR_STRING is at most this in all implementations
    int length = 0;
    functions_.error_string(error, text.data(), &length);
    throw Error(ErrorKind::peer_lost,
                "MPI could not exchange a message with " +
                    (peer < 0 ? std::string("a rank of another node") : "rank " + std::to_string(peer)) + ": " +
                    text.data());
  }

  const MpiSetup setup_;
  const Functions<Handle> functions_;
  const Handle communicator_, byte_;
  std::vector<Handle> requests_;   // those that are not over
  std::vector<Transfer*> owners_;  // and whose they are
  std::vector<int> indices_;       // room for Testsome, as long as requests_ at least
  std::vector<Status> statuses_;
};

}  // namespace

std::unique_ptr<Network> make_mpi_network(MpiSetup setup) {
  if (setup.handle_bytes == 4) return std::make_unique<MpiNetwork<std::uint32_t>>(std::move(setup));
  if (setup.handle_bytes == 8) return std::make_unique<MpiNetwork<void*>>(std::move(setup));
  fail_system("Handles of MPI have 4 or 8 bytes: here they have " + std::to_string(setup.handle_bytes) + ".");
}

}  // namespace ringred
