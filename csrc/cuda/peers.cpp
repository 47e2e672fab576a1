#include "csrc/cuda/peers.h"

#include "csrc/base/error.h"
#include "csrc/base/text.h"

namespace ringred::cuda {
namespace {

// Why not, or "". Between ranks of one process, which see each other's addresses.
std::string enable_access(const Gpu& gpu, const Uuid& peer_device) {
  if (peer_device == gpu.facts.uuid) return "";
  const Driver& driver = *gpu.driver;
  const std::optional<int> ordinal = ordinal_of(driver, peer_device);
  if (!ordinal) return words(peer_device) + " is not visible in its process";
  Device device = -1;
  driver.check(driver->device_get(&device, *ordinal), "find a device");
  int can = 0;
  driver.check(driver->device_can_access_peer(&can, gpu.facts.device, device), "ask for peer access");
  if (can == 0) return "its device has no peer access to " + words(peer_device) + " (nvidia-smi topo -p2p rw)";
  const PrimaryContext peer(gpu.driver, device);  // which the peer holds, too, as long as it takes part
  const CurrentContext current(gpu);
  const Result result = driver->context_enable_peer_access(peer.get(), 0);
  if (result == Result::success || result == Result::peer_access_already_enabled) return "";
  return "peer access to " + words(peer_device) + " could not be enabled: " + driver.words(result);
}

std::string why_not(const Gpu& gpu, Mappings& mappings, const PeerRow& mine, const PeerRow& peer) {
  if (peer.probe.owner == mine.probe.owner) return enable_access(gpu, peer.probe.device);
  return mappings.open(peer.probe).refusal;  // kept open until mappings close
}

}  // namespace

PeerRow describe(const Gpu& gpu, const ProcessIdentity& self, const DeviceMemory& probe) {
  PeerRow row;
  row.probe = share(gpu, self, probe.address(), probe_bytes);
  return row;
}

PeerRow reach(const Gpu& gpu, Mappings& mappings, std::span<const PeerRow> rows, int rank) {
  if (rows.size() > PeerRow::most_ranks)
    fail_usage("A node has at most " + std::to_string(PeerRow::most_ranks) + " ranks with GPUs: here are " +
               std::to_string(rows.size()) + ".");
  PeerRow row = rows[static_cast<std::size_t>(rank)];
  for (std::size_t peer = 0; peer < rows.size(); ++peer) {
    const std::string reason =
        static_cast<int>(peer) == rank ? "" : why_not(gpu, mappings, rows[static_cast<std::size_t>(rank)], rows[peer]);
    if (reason.empty()) {
      row.reached |= std::uint64_t{1} << peer;
    } else if (row.unreachable < 0) {
      row.unreachable = static_cast<std::int32_t>(peer);
      store_text(row.reason, reason);
    }
  }
  return row;
}

bool PeerTable::reaches(int rank, int peer) const {
  return (rows_[static_cast<std::size_t>(rank)].reached >> peer & 1) != 0;
}

bool PeerTable::is_direct() const {
  for (const PeerRow& row : rows_)
    if (row.unreachable >= 0) return false;
  return true;
}

bool PeerTable::takes_turns() const {
  for (const PeerRow& one : rows_)
    for (const PeerRow& other : rows_)
      if (one.probe.device == other.probe.device && !(one.probe.owner == other.probe.owner)) return true;
  return false;
}

std::string PeerTable::fallback_sentence() const {
  for (std::size_t rank = 0; rank < rows_.size(); ++rank) {
    const PeerRow& row = rows_[rank];
    if (row.unreachable >= 0)
      return "Tensors on GPUs go through host memory, which is slower: rank " + std::to_string(rank) +
             " cannot reach the device memory of rank " + std::to_string(row.unreachable) + ": " + row.reason;
  }
  return "";
}

}  // namespace ringred::cuda
