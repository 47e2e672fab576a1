// Which ranks of a node can load and store each other's device memory, agreed by all of them.
//
// How they agree:
//   1. every rank says what it is and shares a little memory (probe), and all ranks gather these rows;
//   2. every rank tries each peer's allocation (reach), and all ranks gather what came of it;
//   3. PeerTable is a pure function of the rows, so all ranks decide alike;
//   4. probes end as all shared memory does (end_sharing, in mappings.h).
//
// Trying is the test: cuDeviceCanAccessPeer knows only the devices that this process sees, and nothing of containers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "csrc/cuda/device_memory.h"
#include "csrc/cuda/mappings.h"

namespace ringred::cuda {

// Plain bytes, for shared memory or a message.
struct PeerRow {
  static constexpr int most_ranks = 64;  // of a node: bits of a word

  SharedRange probe;              // step 1; probe.owner and probe.device say who and what the rank is
  std::int32_t unreachable = -1;  // step 2: the first peer that it does not reach
  std::uint64_t reached = 0;      // step 2: a bit for each rank whose memory it can load and store
  char reason[240] = {};          // step 2: why it does not
};

static_assert(std::is_trivially_copyable_v<PeerRow>);

// What peers try to open: a little device memory.
inline constexpr std::size_t probe_bytes = 256;

// Step 1. Throws what device_facts and share throw.
PeerRow describe(const Gpu& gpu, const ProcessIdentity& self, const DeviceMemory& probe);

// Step 2, for rank `rank`, whose row is among the others. Peer access between devices of this process is enabled.
PeerRow reach(const Gpu& gpu, Mappings& mappings, std::span<const PeerRow> rows, int rank);

// Step 3.
class PeerTable {
 public:
  explicit PeerTable(std::vector<PeerRow> rows) : rows_(std::move(rows)) {}

  bool reaches(int rank, int peer) const;
  bool is_direct() const;  // everyone reaches everyone: otherwise tensors are staged

  // Whether two ranks of different processes have one device. Their kernels then take turns and never run at the same
  // time: none may wait for the other's.
  bool takes_turns() const;

  // For the user, where tensors are staged: who does not reach whom, and why. "" if is_direct().
  std::string fallback_sentence() const;

 private:
  std::vector<PeerRow> rows_;
};

}  // namespace ringred::cuda
