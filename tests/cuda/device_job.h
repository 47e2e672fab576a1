// Ranks of a device's communicator as threads, each in a process of its own on a fake machine, with emulated kernels;
// and allreduces whose results are compared.
//
// Invariant: whatever a test does, all ranks end; afterwards no mistake was made on the machine.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "csrc/cuda/communicator.h"
#include "tests/cuda/emulated_kernels.h"
#include "tests/cuda/fakes.h"
#include "tests/cuda/rank_values.h"

namespace ringred::check {

// An allgather between threads, with a deadline.
class MeetingPoint {
 public:
  explicit MeetingPoint(int size) : rows_(static_cast<std::size_t>(size)) {}

  std::vector<std::byte> gather(int rank, std::span<const std::byte> mine) {
    std::unique_lock lock(mutex_);
    const std::uint64_t meeting = meeting_;
    rows_[static_cast<std::size_t>(rank)].assign(mine.begin(), mine.end());
    if (++come_ == rows_.size()) {
      come_ = 0;
      all_.clear();
      for (const auto& row : rows_) all_.insert(all_.end(), row.begin(), row.end());
      ++meeting_;
      changed_.notify_all();
    } else if (!changed_.wait_for(lock, limit, [&] { return meeting_ != meeting; })) {
      throw Error(ErrorKind::timeout, "rank " + std::to_string(rank) + " waited too long for a meeting");
    }
    return all_;  // nobody comes to the next one before all have this
  }

  std::chrono::milliseconds limit{20000};

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::vector<std::byte>> rows_;
  std::vector<std::byte> all_;
  std::size_t come_ = 0;
  std::uint64_t meeting_ = 0;
};

// So small that a few hundred elements go in many pieces and windows.
inline Sizes small_sizes(int size) {
  const auto ranks = static_cast<std::size_t>(size);
  Sizes sizes;
  sizes.packet_bytes = 256 * ranks;
  sizes.one_shot_bytes = 1024 * ranks;
  sizes.piece_bytes = 1024;
  sizes.slice_bytes = 256;
  sizes.blocks = 2;
  sizes.threads = 32;
  sizes.stripes = 2;
  sizes.slots = 2;
  sizes.pipeline_chunks = 3;
  sizes.slot_bytes = 256;
  sizes.packet_slot_bytes = 128;
  return sizes;
}

struct DeviceJob {
  FakeRanks processes;
  MeetingPoint meeting;
  Sizes sizes;
  double timeout = 60;
  std::function<void(int rank)> look_around;
  std::vector<std::vector<HostBlock>> blocks;  // for their alignment; more than one for each rank
  bool leaves_nothing = true;                  // whether all memory must have been given back

  explicit DeviceJob(int size, bool one_device = false)
      : processes(size, one_device), meeting(size), sizes(small_sizes(size)) {
    processes.machine.slow = true;
    for (int rank = 0; rank < size; ++rank)
      blocks.emplace_back(DeviceCommunicator::host_bytes(size, sizes) / sizeof(HostBlock) + 1);
  }

  int size() const { return processes.size(); }
  HostBlock& block(int rank) { return blocks[static_cast<std::size_t>(rank)][0]; }

  DeviceCommunicator::Setup setup(const Gpu& gpu, int rank) {
    std::vector<std::byte*> starts;
    for (auto& block : blocks) starts.push_back(reinterpret_cast<std::byte*>(block.data()));
    return {gpu,
            rank,
            size(),
            [this, rank](std::span<const std::byte> mine) { return meeting.gather(rank, mine); },
            starts,
            {{false, std::chrono::microseconds(50), timeout, 0}, nullptr},
            look_around ? std::function<void()>([this, rank] { look_around(rank); }) : nullptr,
            emulated_kernels(processes[rank]),
            sizes,
            {static_cast<std::uint64_t>(rank + 1), 1}};
  }

  // body(rank, gpu) on a thread for each rank.
  template <class Body>
  void run_alone(Body body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size(); ++rank)
      threads.emplace_back([&, rank] {
        const InProcess inside(processes[rank]);
        try {
          body(rank, Gpu::open(fake_driver(), 0));
        } catch (const std::exception& error) {
          report("rank", rank, std::string("uncaught: ") + error.what());
        }
      });
    for (std::thread& thread : threads) thread.join();
    for (int rank = 0; rank < size(); ++rank) {
      processes[rank].drain();
      if (leaves_nothing) CHECK_EQ(processes[rank].open_things(), "");
    }
    CHECK_EQ(processes.machine.mistakes(), "");
  }

  // body(rank, communicator, process).
  template <class Body>
  void run(Body body) {
    run_alone([&](int rank, const Gpu& gpu) {
      DeviceCommunicator communicator(setup(gpu, rank));
      body(rank, communicator, processes[rank]);
    });
  }
};

template <class T>
T* elements(FakeProcess& process, DevicePointer address, std::size_t count) {
  return reinterpret_cast<T*>(process.host(address, count * sizeof(T)));
}

// How a call differs from the simplest one.
struct Style {
  bool in_place = true;
  std::size_t shift = 0;  // elements from a multiple of 256 bytes
  double prescale = 1, postscale = 1;
  std::optional<Algorithm> algorithm = {};
};

// A rank's side of allreduces: fills on its stream, calls, reads back on its stream, and compares when all is over.
template <class T>
class Caller {
 public:
  Caller(int rank, DeviceCommunicator& communicator, FakeProcess& process)
      : rank_(rank), communicator_(communicator), process_(process), stream_(communicator.gpu()) {}
  Caller(const Caller&) = delete;
  ~Caller() { process_.drain(); }

  Stream stream() const { return stream_.get(); }
  CallerStream caller() const { return CallerStream(stream_.get()); }

  void reduce(std::size_t count, Op op, unsigned seed, const Style& style = {}) {
    Round& round = begin(count, op, seed, style);
    const DeviceMemory& out = *round.memory[style.in_place ? 0 : 1];
    const DevicePointer shift = style.shift * sizeof(T);
    fill(round, round.memory[0]->address() + shift);
    communicator_.allreduce(caller(), round.memory[0]->address() + shift, out.address() + shift, reduction(round));
    read(round, out.address() + shift);
  }

  void reduce_symmetric(const SymmetricMemory& memory, std::size_t offset, std::size_t count, Op op, unsigned seed,
                        const Style& style = {}) {
    Round& round = begin(count, op, seed, style);
    fill(round, memory.address() + offset);
    communicator_.allreduce_symmetric(caller(), memory, offset, reduction(round));
    read(round, memory.address() + offset);
  }

  // The results of all rounds; a half that is added in a schedule is rounded once for each rank.
  void finish() {
    communicator_.await();
    process_.drain();
    for (Round& round : rounds_)
      if (!round.refused) compare(round);
    rounds_.clear();
  }

  struct Round {
    std::size_t count;
    Op op;
    Style style;
    Values<T> inputs;
    std::vector<T> result;
    std::unique_ptr<DeviceMemory> memory[2];
    bool refused = true;  // until it is read
  };

  Round& begin(std::size_t count, Op op, unsigned seed, const Style& style) {
    const std::size_t bytes = (count + style.shift) * sizeof(T) + 1;
    Round& round = rounds_.emplace_back(Round{
        count, op, style, make_values<T>(communicator_.size(), count, op, seed), std::vector<T>(count), {}, true});
    for (auto& memory : round.memory) memory = std::make_unique<DeviceMemory>(communicator_.gpu(), bytes);
    return round;
  }
  static Reduction reduction(const Round& round) {
    return {round.count, Kind<T>::dtype, round.op, round.style.prescale, round.style.postscale, round.style.algorithm};
  }
  void fill(Round& round, DevicePointer address) {
    T* const to = elements<T>(process_, address, round.count);
    const T* const from = round.inputs[static_cast<std::size_t>(rank_)].data();
    process_.enqueue(stream(), [to, from, bytes = round.count * sizeof(T)] { copy(to, from, bytes); });
  }
  void read(Round& round, DevicePointer address) {
    round.refused = false;
    const T* const from = elements<T>(process_, address, round.count);
    process_.enqueue(stream(),
                     [to = round.result.data(), from, bytes = round.count * sizeof(T)] { copy(to, from, bytes); });
  }

 private:
  static void copy(T* to, const T* from, std::size_t bytes) {
    if (bytes > 0) std::memcpy(static_cast<void*>(to), static_cast<const void*>(from), bytes);
  }

  // Factors are powers of two, which change no bit of a significand.
  void compare(Round& round) {
    for (std::vector<T>& input : round.inputs)
      for (T& value : input) value = Kind<T>::from(Kind<T>::to(value) * round.style.prescale);
    for (T& value : round.result) value = Kind<T>::from(Kind<T>::to(value) / round.style.postscale);
    check_results<T>(round.inputs, {round.result}, round.op, communicator_.size());
  }

  const int rank_;
  DeviceCommunicator& communicator_;
  FakeProcess& process_;
  const OwnStream stream_;
  std::deque<Round> rounds_;
};

}  // namespace ringred::check
