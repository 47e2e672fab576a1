// Device memory between processes: shared, opened, kept, closed in order; and who reaches whom.
#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/cuda/mappings.h"
#include "csrc/cuda/peers.h"
#include "tests/cuda/fakes.h"

using namespace ringred;
using namespace ringred::cuda;
using namespace ringred::check;

namespace {

ProcessIdentity identity_of(int rank) {
  return {static_cast<std::uint64_t>(1000 + rank), 1};
}

// A thread is in one process at a time: so each of these is a scope.
template <class Body>
auto in(FakeProcess& process, Body&& body) {
  const InProcess inside(process);
  return body();
}

// A rank in its process, with what it needs to share memory.
struct Rank {
  FakeProcess& process;
  const ProcessIdentity self;
  Gpu gpu;
  std::optional<Mappings> own_mappings;
  Mappings& mappings;

  Rank(FakeProcess& its_process, int number, int ordinal = 0)
      : process(its_process),
        self(identity_of(number)),
        gpu(in(process, [&] { return Gpu::open(fake_driver(), ordinal); })),
        own_mappings(std::in_place, gpu, self),
        mappings(*own_mappings) {}
  ~Rank() {
    const InProcess inside(process);
    own_mappings.reset();
    gpu.context.reset();
  }

  DevicePointer allocate(std::size_t bytes) {
    const InProcess inside(process);
    const CurrentContext current(gpu);
    DevicePointer address = 0;
    gpu.driver->check((*gpu.driver)->memory_allocate(&address, bytes), "allocate");
    return address;
  }
  void free(DevicePointer address) {
    const InProcess inside(process);
    CHECK((*gpu.driver)->memory_free(address) == Result::success);
  }
};

template <class Body>
auto in(Rank& rank, Body&& body) {
  return in(rank.process, body);
}

SharedRange shared(Rank& rank, DevicePointer address, std::size_t bytes) {
  return in(rank, [&] { return share(rank.gpu, rank.self, address, bytes); });
}

Mappings::Opening opened(Rank& rank, const SharedRange& range, std::span<const int> descriptors = {}) {
  return in(rank, [&] { return rank.mappings.open(range, descriptors); });
}

int open_descriptors() {
  int count = 0;
  for (int number = 0; number < 256; ++number) count += fcntl(number, F_GETFD) >= 0;
  return count;
}

struct TwoRanks {
  FakeRanks ranks{2};
  Rank owner{ranks[0], 0}, peer{ranks[1], 1};
  TwoRanks() = default;

  void check_end() {
    in(peer, [&] { peer.mappings.close_all(); });
    CHECK_EQ(ranks.machine.mistakes(), "");
  }
};

}  // namespace

TEST("a peer sees an allocation at an address of its own, and a range in it where it lies") {
  TwoRanks two;
  const DevicePointer memory = two.owner.allocate(4096);
  const SharedRange range = shared(two.owner, memory + 128, 256);
  CHECK(range.route == Route::legacy && range.base == memory && range.base_bytes == 4096);
  {
    const auto opening = opened(two.peer, range);
    CHECK(opening.lease.has_value());
    const DevicePointer seen = opening.lease->address();
    CHECK(seen != memory + 128);
    CHECK(two.ranks[1].host(seen, 256) == two.ranks[0].host(memory + 128, 256));
    // Another range of the same allocation needs no second opening.
    const auto again = opened(two.peer, shared(two.owner, memory, 64));
    CHECK_EQ(again.lease->address() + 128, seen);
    CHECK_EQ(two.ranks[1].calls_of("cuIpcOpenMemHandle_v2"), 1);
  }
  two.check_end();
  two.owner.free(memory);
  CHECK_EQ(two.ranks.machine.mistakes(), "");
}

TEST("the fake machine notices memory that is used across processes, and freed while open") {
  TwoRanks two;
  const DevicePointer memory = two.owner.allocate(4096);
  const auto opening = opened(two.peer, shared(two.owner, memory, 64));
  CHECK(two.ranks[1].host(memory, 64) == nullptr);
  CHECK_EQ(two.ranks.machine.mistakes(), "process 1 uses an address that it cannot access; ");
  two.owner.free(memory);
  CHECK(two.ranks.machine.mistakes().find("freed while a peer has it open") != std::string::npos);
}

TEST("memory that was freed and allocated again at the same address is opened again") {
  TwoRanks two;
  const DevicePointer first = two.owner.allocate(4096);
  const SharedRange old_range = shared(two.owner, first, 64);
  CHECK(opened(two.peer, old_range).lease.has_value());
  in(two.peer, [&] { two.peer.mappings.close_all(); });
  two.owner.free(first);
  const DevicePointer second = two.owner.allocate(8192);
  CHECK_EQ(second, first);
  const SharedRange new_range = shared(two.owner, second, 64);
  CHECK(new_range.identity != old_range.identity);
  const auto opening = opened(two.peer, new_range);
  CHECK(two.ranks[1].host(opening.lease->address(), 64) == two.ranks[0].host(second, 64));
  two.check_end();
}

TEST("a mapping of memory that its owner has freed is closed when its successor is opened") {
  TwoRanks two;
  const DevicePointer first = two.owner.allocate(4096);
  CHECK(opened(two.peer, shared(two.owner, first, 64)).lease.has_value());
  two.owner.free(first);  // behind our back, as a caching allocator does
  CHECK_EQ(two.ranks.machine.mistake_count(), 1);
  const DevicePointer second = two.owner.allocate(4096);
  const auto opening = opened(two.peer, shared(two.owner, second, 64));
  CHECK_EQ(two.peer.mappings.open_count(), 1u);
  CHECK(two.ranks[1].host(opening.lease->address(), 64) == two.ranks[0].host(second, 64));
  // While a call holds it, that is an error of the owner's.
  two.owner.free(second);
  const SharedRange third = shared(two.owner, two.owner.allocate(4096), 64);
  CHECK_THROWS(opened(two.peer, third), "process 1000 has freed 4096 bytes that a call of this rank still reads");
}

TEST("mappings that nobody holds stay open, but not too many") {
  TwoRanks two;
  const std::size_t count = Mappings::most_idle + 5;
  std::vector<SharedRange> ranges;
  for (std::size_t i = 0; i < count; ++i) ranges.push_back(shared(two.owner, two.owner.allocate(64), 64));
  const auto held = opened(two.peer, ranges[0]);
  for (const SharedRange& range : ranges) CHECK(opened(two.peer, range).lease.has_value());
  CHECK_EQ(two.peer.mappings.open_count(), Mappings::most_idle + 1);  // the idle ones and the one that is held
  CHECK_EQ(opened(two.peer, ranges[0]).lease->address(), held.lease->address());
  CHECK_EQ(two.ranks[1].calls_of("cuIpcOpenMemHandle_v2"), static_cast<int>(count));
  two.check_end();
  CHECK_EQ(two.ranks[1].calls_of("cuIpcCloseMemHandle"), static_cast<int>(count));
}

TEST("ranks of one process use addresses as they are") {
  FakeMachine machine(2);
  FakeProcess process(machine, 0, {0, 1});
  Rank one(process, 0, 0), other(process, 0, 1);
  const DevicePointer memory = one.allocate(512);
  const SharedRange range = shared(one, memory, 512);
  CHECK_EQ(opened(other, range).lease->address(), memory);
  CHECK_THROWS(
      shared(other, memory, 512),
      "must lie on its device, device 1 (Fake GPU, compute capability 9.0): this one lies on device 0. Move it");
  CHECK(!other.mappings.needs_descriptors(range));
  CHECK_EQ(process.calls_of("cuIpcOpenMemHandle_v2"), 0);
  one.free(memory);
  CHECK_EQ(machine.mistakes(), "");
}

TEST("virtual memory travels as descriptors, one for each piece, which the caller closes") {
  const int before = open_descriptors();
  {
    TwoRanks two;
    const DevicePointer memory = two.ranks[0].map_physical(4, 8192, true);
    const SharedRange range = shared(two.owner, memory + 9000, 9000);  // from the second piece into the third
    CHECK(range.route == Route::descriptors);
    CHECK_EQ(range.pieces, 2u);
    CHECK_EQ(range.base, memory + 8192);
    CHECK_EQ(range.base_bytes, 16384u);
    const Descriptors descriptors = in(two.owner, [&] { return descriptors_of(two.owner.gpu, range); });
    CHECK_EQ(descriptors.numbers().size(), 2u);
    CHECK(two.peer.mappings.needs_descriptors(range));
    CHECK_THROWS(opened(two.peer, range), "Memory of 2 pieces needs as many descriptors: there are 0");
    {
      const auto opening = opened(two.peer, range, descriptors.numbers());
      const DevicePointer seen = opening.lease->address();
      CHECK(two.ranks[1].host(seen, 100) == two.ranks[0].host(memory + 9000, 100));
      CHECK(two.ranks[1].host(seen + 8192, 100) == two.ranks[0].host(memory + 9000 + 8192, 100));
      CHECK(!two.peer.mappings.needs_descriptors(range));
      CHECK(opened(two.peer, range).lease.has_value());
    }
    two.check_end();
    CHECK_EQ(two.ranks[1].open_things(), "1 references to contexts; ");
    // Other memory at the same addresses is other memory.
    two.ranks[0].unmap_physical(memory);
    CHECK_EQ(two.ranks[0].map_physical(4, 8192, true), memory);
    CHECK(shared(two.owner, memory + 9000, 9000).identity != range.identity);
  }
  CHECK_EQ(open_descriptors(), before);
}

TEST("memory that cannot be shared says why, and no tensor at all is an error") {
  TwoRanks two;
  const auto reason = [&](DevicePointer address) {
    const SharedRange range = shared(two.owner, address, 64);
    CHECK(range.route == Route::none);
    const auto opening = opened(two.peer, range);
    CHECK(!opening.lease.has_value());
    return opening.refusal;
  };
  CHECK_EQ(reason(two.ranks[0].allocate_pooled(256)),
           "memory of cudaMallocAsync cannot be shared unless its pool was made for it");
  CHECK_EQ(reason(two.ranks[0].allocate_managed(256)), "managed memory cannot be shared between processes");
  CHECK(reason(two.ranks[0].map_physical(1, 4096, false)).find("was not made to be shared") != std::string::npos);
  two.ranks[0].fail("cuIpcGetMemHandle", Result::not_supported);
  CHECK(reason(two.owner.allocate(64)).find("CUDA_ERROR_NOT_SUPPORTED") != std::string::npos);
  const DevicePointer memory = two.owner.allocate(64);
  CHECK_THROWS(shared(two.owner, 12345, 64), "must lie in device memory: 64 bytes at 0x3039 do not");
  CHECK_THROWS(shared(two.owner, memory, 65), "must lie in one allocation: 65 bytes at");
}

TEST("a device without CUDA IPC shares what was made for descriptors, nothing else") {
  FakeRanks ranks(1);
  ranks.machine.devices[0].legacy_ipc = false;
  Rank rank(ranks[0], 0);
  CHECK_EQ(std::string(shared(rank, rank.allocate(64), 64).reason), "the device does not support CUDA IPC");
  CHECK(shared(rank, ranks[0].map_physical(1, 4096, true), 64).route == Route::descriptors);
}

TEST("where opening is refused the reason has a remedy") {
  TwoRanks two;
  const SharedRange range = shared(two.owner, two.owner.allocate(64), 64);
  const DevicePointer physical = two.ranks[0].map_physical(1, 4096, true);
  const SharedRange pieces = shared(two.owner, physical, 64);
  const Descriptors descriptors = in(two.owner, [&] { return descriptors_of(two.owner.gpu, pieces); });
  two.ranks.machine.ipc_refused = true;
  CHECK(opened(two.peer, range).refusal.find("CUDA_ERROR_MAP_FAILED") != std::string::npos);
  CHECK(opened(two.peer, range).refusal.find("--ipc=host --pid=host") != std::string::npos);
  CHECK(opened(two.peer, pieces, descriptors.numbers()).refusal.find("CUDA_ERROR_NOT_PERMITTED") != std::string::npos);
  two.ranks.machine.ipc_refused = false;
  two.ranks.machine.peers.clear();
  CHECK(opened(two.peer, range).refusal.find("nvidia-smi topo -p2p rw") != std::string::npos);
  CHECK(opened(two.peer, pieces, descriptors.numbers()).refusal.find("nvidia-smi topo") != std::string::npos);
  CHECK_EQ(two.peer.mappings.open_count(), 0u);
  CHECK_EQ(two.ranks[1].open_things(), "1 references to contexts; ");
  two.check_end();
}

TEST("memory is freed only after its own work and all peers have ended") {
  TwoRanks two;
  const SharedRange range = shared(two.owner, two.owner.allocate(64), 64);
  const auto opening = opened(two.peer, range);
  std::string order;
  const auto ends = [&](bool work, bool meeting) {
    order.clear();
    return in(two.peer, [&] {
      return end_sharing(
          two.peer.mappings,
          [&] {
            order += "work" + std::to_string(two.peer.mappings.open_count()) + " ";
            return work;
          },
          [&] {
            order += "meet" + std::to_string(two.peer.mappings.open_count()) + " ";
            return meeting;
          },
          [&] { order += "free"; });
    });
  };
  CHECK(!ends(false, true));
  CHECK_EQ(order, "work1 ");  // what may still be in use stays open, too
  CHECK(!ends(true, false));
  CHECK_EQ(order, "work1 meet0 ");
  CHECK(ends(true, true));
  CHECK_EQ(order, "work0 meet0 free");
}

namespace {

// Steps 1 to 4 of peers.h, with the ranks of a machine one after the other.
PeerTable agree(std::vector<std::unique_ptr<Rank>>& ranks) {
  std::vector<std::unique_ptr<DeviceMemory>> probes;
  std::vector<PeerRow> rows, reached;
  for (auto& rank : ranks)
    in(*rank, [&] {
      probes.push_back(std::make_unique<DeviceMemory>(rank->gpu, probe_bytes));
      rows.push_back(describe(rank->gpu, rank->self, *probes.back()));
    });
  for (std::size_t i = 0; i < ranks.size(); ++i)
    in(*ranks[i], [&] { reached.push_back(reach(ranks[i]->gpu, ranks[i]->mappings, rows, static_cast<int>(i))); });
  for (auto& rank : ranks) in(*rank, [&] { rank->mappings.close_all(); });
  for (std::size_t i = 0; i < ranks.size(); ++i) in(*ranks[i], [&] { probes[i]->free(); });
  return PeerTable(std::move(reached));
}

std::vector<std::unique_ptr<Rank>> ranks_of(FakeRanks& processes) {
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int rank = 0; rank < processes.size(); ++rank) ranks.push_back(std::make_unique<Rank>(processes[rank], rank));
  return ranks;
}

}  // namespace

TEST("ranks agree on who reaches whom, and leave no probe") {
  FakeRanks processes(3);
  auto ranks = ranks_of(processes);
  const PeerTable table = agree(ranks);
  CHECK(table.is_direct() && !table.takes_turns());
  CHECK_EQ(table.fallback_sentence(), "");
  for (int rank = 0; rank < 3; ++rank) {
    for (int peer = 0; peer < 3; ++peer) CHECK(table.reaches(rank, peer));
    CHECK_EQ(processes[rank].open_things(), "1 references to contexts; ");
  }
  CHECK_EQ(processes.machine.mistakes(), "");
}

TEST("one pair without peer access stages everyone, with a sentence") {
  FakeRanks processes(3);
  processes.machine.peers.erase({2, 1});
  auto ranks = ranks_of(processes);
  const PeerTable table = agree(ranks);
  CHECK(!table.is_direct());
  CHECK(table.reaches(1, 2) && !table.reaches(2, 1) && table.reaches(2, 0));
  CHECK(table.fallback_sentence().find("rank 2 cannot reach the device memory of rank 1: opening a peer's") !=
        std::string::npos);
}

TEST("ranks in different containers stage; ranks of several processes on one device take turns") {
  FakeRanks processes(2, true);
  auto ranks = ranks_of(processes);
  const PeerTable table = agree(ranks);
  CHECK(table.is_direct() && table.takes_turns());
  processes.machine.ipc_refused = true;
  const PeerTable refused = agree(ranks);
  CHECK(!refused.is_direct());
  CHECK(refused.fallback_sentence().find("--ipc=host") != std::string::npos);
}

TEST("ranks of one process enable peer access between their devices, once") {
  FakeMachine machine(2);
  FakeProcess process(machine, 0, {1, 0});
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int rank = 0; rank < 2; ++rank) ranks.push_back(std::make_unique<Rank>(process, 0, rank));
  CHECK(agree(ranks).is_direct());
  CHECK(agree(ranks).is_direct());  // already enabled is no error
  CHECK_EQ(process.enabled_peers.size(), 2u);
  machine.peers.clear();
  CHECK(agree(ranks).fallback_sentence().find("has no peer access to GPU-0000") != std::string::npos);
  machine.peers = {{0, 1}, {1, 0}};
  process.fail("cuCtxEnablePeerAccess", Result::too_many_peers);
  CHECK(agree(ranks).fallback_sentence().find("could not be enabled: error 711") != std::string::npos);
}

TEST("more ranks than bits are refused") {
  FakeRanks processes(1);
  Rank rank(processes[0], 0);
  const std::vector<PeerRow> rows(65);
  CHECK_THROWS(reach(rank.gpu, rank.mappings, rows, 0), "at most 64 ranks with GPUs: here are 65");
}

TEST("whatever call fails while memory is shared and opened, nothing is left open") {
  const int before = open_descriptors();
  const int calls = fail_each_call(2, [&](FakeProcess& process, FakeMachine& machine) {
    FakeProcess other(machine, 1, {1});
    Rank owner(other, 1);
    const DevicePointer plain = owner.allocate(4096), physical = other.map_physical(3, 4096, true);
    const SharedRange by_handle = shared(owner, plain, 4096), by_descriptor = shared(owner, physical, 12000);
    const Descriptors descriptors = in(owner, [&] { return descriptors_of(owner.gpu, by_descriptor); });
    Rank rank(process, 0);
    {
      const DeviceMemory probe(rank.gpu, probe_bytes);
      describe(rank.gpu, rank.self, probe);
    }
    rank.mappings.open(by_handle);
    rank.mappings.open(by_descriptor, descriptors.numbers());
    const DevicePointer own = process.map_physical(2, 4096, true);
    try {
      descriptors_of(rank.gpu, share(rank.gpu, rank.self, own, 8192));
    } catch (const Error&) {
      process.unmap_physical(own);
      throw;
    }
    process.unmap_physical(own);
  });
  CHECK(calls > 50);
  CHECK_EQ(open_descriptors(), before);
}
