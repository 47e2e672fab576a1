// How a communicator begins, and what it makes together with all ranks later.
#include <algorithm>

#include "csrc/base/error.h"
#include "csrc/base/round.h"
#include "csrc/cuda/communicator.h"

namespace ringred::cuda {
namespace {

constexpr std::size_t page = 4096;

std::size_t staging_begin() {
  return round_up(sizeof(HostBlock), page);
}

// What a rank tells of itself at first.
struct Introduction {
  SharedRange part;  // of the memory for leaves
  Sizes sizes;
  int size = 0;
  int blocks = 0;  // that its device runs at the same time
};

// What all ranks must bring alike for memory, and what differs.
struct Part {
  std::size_t bytes = 0;
  SharedRange range;
};

constexpr DType reduced[] = {DType::f16, DType::bf16, DType::f32, DType::f64, DType::i32, DType::i64};

template <class Most>
int least(Most most) {
  int blocks = most(reduced[0]);
  for (const DType dtype : reduced) blocks = std::min(blocks, most(dtype));
  return blocks;
}

int blocks_of(Kernels& kernels, const Sizes& sizes) {
  const auto threads = static_cast<unsigned>(sizes.threads);
  int blocks = sizes.blocks;
  for (const Leaf leaf : {Leaf::packets, Leaf::one_shot, Leaf::two_shot})
    blocks = std::min(blocks, least([&](DType dtype) { return kernels.most_blocks(leaf, dtype, 1, threads); }));
  return blocks;
}

int ranks_on(const std::vector<PeerRow>& rows, const Uuid& device) {
  return static_cast<int>(
      std::count_if(rows.begin(), rows.end(), [&](const PeerRow& row) { return row.probe.device == device; }));
}

void check_sizes(const Sizes& sizes) {
  const auto refuse = [](const std::string& rule, std::size_t value) {
    fail_usage(rule + ": it is " + std::to_string(value) + ".");
  };
  if (sizes.piece_bytes == 0 || sizes.piece_bytes % 256 != 0)
    refuse("A piece must have a multiple of 256 bytes", sizes.piece_bytes);
  if (sizes.packet_bytes > sizes.one_shot_bytes)
    refuse("Packets must be for vectors no longer than those of one_shot", sizes.packet_bytes);
  if (sizes.blocks < 1 || sizes.stripes < 1) refuse("A kernel must have a block or more", 0);
}

}  // namespace

std::size_t DeviceCommunicator::host_bytes(int size, const Sizes& sizes) {
  return round_up(staging_begin() + StagingLayout{sizes.slice_bytes, size}.bytes(), page);
}

// A rank that fails on the way to a meeting says so there; one whose meeting fails is broken, since others may have
// met.
template <class Work>
auto DeviceCommunicator::meet(Work&& work) {
  const Meeting or_broken = [this](std::span<const std::byte> mine) {
    std::vector<std::byte> all;
    or_break_off([&] { all = setup_.meeting(mine); });
    return all;
  };
  return cuda::meet(or_broken, work);
}

DeviceCommunicator::DeviceCommunicator(Setup setup, Opening)
    : setup_(std::move(setup)), mappings_(setup_.gpu, setup_.self) {}

// From here on the destructor runs if something fails.
DeviceCommunicator::DeviceCommunicator(Setup setup) : DeviceCommunicator(std::move(setup), Opening{}) {
  open();
}

void DeviceCommunicator::open() {
  if (index(size()) != setup_.host_blocks.size() || rank() < 0 || rank() >= size())
    fail_usage("A communicator needs a host block for each rank, and its rank among them: there are " +
               std::to_string(setup_.host_blocks.size()) + " for rank " + std::to_string(rank()) + " of " +
               std::to_string(size()) + ".");
  std::vector<HostBlock*> blocks;
  for (int peer = 0; peer < size(); ++peer) blocks.push_back(&block(peer));
  announcements_.emplace(blocks, rank());
  const bool may_be_direct = size() <= most_ranks;
  const std::vector<Introduction> all = meet([&] {
    check_sizes(setup_.sizes);
    const CurrentContext current(setup_.gpu);
    registered_.emplace(setup_.gpu, &block(rank()), sizeof(HostBlock));
    order_.emplace(setup_.gpu);
    events_.emplace(setup_.gpu, 2);
    memories_.emplace_back(setup_.gpu, may_be_direct ? Direct::bytes(size(), setup_.sizes) : probe_bytes);
    clear(memories_[0]);
    return Introduction{memories_[0].part(setup_.self), setup_.sizes, size(), blocks_of(*setup_.kernels, setup_.sizes)};
  });
  met_ = size() > 1;
  std::vector<PeerRow> rows;
  for (const Introduction& one : all) {
    if (one.size != size() || all.size() != index(size()) || !(one.sizes == setup_.sizes))
      throw Error(ErrorKind::mismatch,
                  "All ranks of a group must be set up alike: rank " + std::to_string(rows.size()) +
                      " has another number of ranks or other sizes than rank " + std::to_string(rank()) + ".");
    rows.emplace_back().probe = one.part;
  }
  choose_way(meet([&] { return reach(setup_.gpu, mappings_, rows, rank()); }));
  if (!is_direct()) return open_staging();
  seats_ = ranks_on(rows, setup_.gpu.facts.uuid);
  int least_blocks = setup_.sizes.blocks;
  for (const Introduction& one : all)
    least_blocks = std::min(least_blocks, one.blocks / ranks_on(rows, one.part.device));
  std::vector<SharedRange> parts;
  for (const Introduction& one : all) parts.push_back(one.part);
  meet([&] {
    memories_[0].open(mappings_, parts, rank());
    open_direct(least_blocks);
    return 0;
  });
}

void DeviceCommunicator::choose_way(const std::vector<PeerRow>& rows) {
  const PeerTable table(rows);
  const std::string staged = "Tensors on GPUs go through host memory, which is slower: ";
  if (!table.is_direct())
    sentence_ = table.fallback_sentence();
  else if (table.takes_turns())
    sentence_ = staged +
                "ranks of several processes share a device, so that their kernels take turns and must not wait for one "
                "another. Give every rank a device of its own.";
  else if (size() > most_ranks)
    sentence_ = staged + "devices of at most " + std::to_string(most_ranks) +
                " ranks work on each other's memory, and there are " + std::to_string(size()) + ".";
  else
    way_ = Way::direct;
  if (is_direct()) sentence_ = "Tensors on GPUs go directly from device to device.";
}

void DeviceCommunicator::open_direct(int blocks) {
  const CurrentContext current(setup_.gpu);
  if (blocks < 1)
    fail_system("A device must run a kernel of each of its ranks at the same time: " + setup_.gpu.facts.words() +
                " cannot, with " + std::to_string(setup_.sizes.threads) + " threads in a block. Use fewer ranks.");
  auto* const report = reinterpret_cast<Report*>(registered_->seen_by_device(&block(rank()).report));
  direct_ = std::make_unique<Direct>(
      Direct::Setup{setup_.gpu, rank(), size(), setup_.sizes, *setup_.kernels, report, patience(), blocks},
      memories_[0]);
}

// Nobody maps what was the probe any more when it is freed.
void DeviceCommunicator::open_staging() {
  mappings_.close_all();
  meet([] { return 0; });
  memories_[0].free();
  memories_.clear();
  meet([&] {
    std::vector<std::byte*> blocks;
    for (std::byte* block : setup_.host_blocks) blocks.push_back(block + staging_begin());
    staging_ = std::make_unique<Staging>(Staging::Setup{
        setup_.gpu, rank(), {setup_.sizes.slice_bytes, size()}, std::move(blocks), setup_.wait, [this] { look(); }});
    return 0;
  });
}

// A kernel waits for as long as the host does; without a limit, for years.
long long DeviceCommunicator::patience() const {
  const double limit = setup_.wait.settings.timeout_seconds;
  return setup_.kernels->ticks(limit > 0 ? limit : 1e8);
}

void DeviceCommunicator::clear(const SymmetricMemory& memory) {
  const CurrentContext current(setup_.gpu);
  setup_.kernels->zero(memory.address(), memory.bytes(), order_->stream());
  const EventPool::Lease cleared = events_->record(order_->stream());
  setup_.wait.until([&] { return cuda::is_over(*setup_.gpu.driver, cleared.get()); }, [&] { look(); },
                    [&] { return "rank " + std::to_string(rank()) + " waits for its device to clear memory"; });
}

// Memory that some ranks have opened when others fail is freed at the end, as all is.
SymmetricMemory& DeviceCommunicator::add_memory(std::size_t bytes, bool zeroed) {
  const std::vector<Part> parts = meet([&] {
    if (bytes == 0) fail_usage("Symmetric memory must have a byte or more: it has 0.");
    require_no_capture(*setup_.gpu.driver, order_->stream(), "Allocating symmetric memory", "all ranks meet for it");
    memories_.emplace_back(setup_.gpu, bytes);
    if (zeroed) clear(memories_.back());
    return Part{bytes, is_direct() ? memories_.back().part(setup_.self) : SharedRange{}};
  });
  std::vector<SharedRange> ranges;
  for (const Part& part : parts) {
    if (part.bytes != bytes)
      throw Error(ErrorKind::mismatch, "All ranks must allocate the same symmetric memory: rank " +
                                           std::to_string(rank()) + " wants " + std::to_string(bytes) +
                                           " bytes, rank " + std::to_string(ranges.size()) + " wants " +
                                           std::to_string(part.bytes) + ".");
    ranges.push_back(part.range);
  }
  if (is_direct())
    meet([&] {
      memories_.back().open(mappings_, ranges, rank());
      return 0;
    });
  return memories_.back();
}

const SymmetricMemory& DeviceCommunicator::allocate(std::size_t bytes) {
  require_open();
  or_break_off([&] { throw_if_broken(); });
  const SymmetricMemory& memory = add_memory(bytes, false);
  regions_.push_back(memories_.size() - 1);
  return memory;
}

void DeviceCommunicator::prepare(Algorithm algorithm) {
  require_open();
  or_break_off([&] { throw_if_broken(); });
  if (!is_direct())
    fail_usage("An algorithm may be prepared where devices reach each other's memory: " +
               std::string(info(algorithm).name) + " is not possible. " + sentence_);
  if (size() == 1 || direct_->has(algorithm)) return;
  const Sizes& sizes = setup_.sizes;
  const Schedule schedule = record(algorithm, size(), sizes.pipeline_chunks);
  const Wiring wiring({schedule});
  struct Row {
    Algorithm algorithm{};
    int stripes = 0;
  };
  int stripes = sizes.stripes;
  for (const Row& row : meet([&] {
         const CurrentContext current(setup_.gpu);
         const auto threads = static_cast<unsigned>(sizes.threads);
         const auto most = [&](DType dtype) {
           return setup_.kernels->most_stripes(dtype, seats_, wiring.lanes(), threads);
         };
         return Row{algorithm, least(most)};
       })) {
    if (row.algorithm != algorithm)
      throw Error(ErrorKind::mismatch, "All ranks must prepare the same algorithm: rank " + std::to_string(rank()) +
                                           " prepares " + std::string(info(algorithm).name) + ", another rank " +
                                           std::string(info(row.algorithm).name) + ".");
    stripes = std::min(stripes, row.stripes);
  }
  const MailShape shape{size(),      wiring.lanes(),   wiring.inboxes(),       stripes,
                        sizes.slots, sizes.slot_bytes, sizes.packet_slot_bytes};
  const SymmetricMemory& mail = add_memory(shape.bytes(), true);
  meet([&] {
    check_shape(shape);
    const CurrentContext current(setup_.gpu);
    const Tape tape = make_tapes(schedule)[index(rank())];
    direct_->add({algorithm, shape, stripes, mail, setup_.kernels->upload(tape, wiring, stripes)});
    return 0;
  });
}

}  // namespace ringred::cuda
