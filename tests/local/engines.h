// Ranks as threads of one process: each has an engine of its own over segments that all see at the same addresses, so
// that ThreadSanitizer sees every access.
#pragma once

#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "csrc/engine/communicator.h"
#include "csrc/link/sockets.h"
#include "csrc/queue/engine.h"
#include "tests/local/ranks.h"
#include "tests/local/sockets.h"
#include "tests/local/switchboard.h"

namespace ringred::check {

struct NoHooks : WaitHooks {};

// The node of each rank, as RINGRED_TEST_NODES says: "0 0 1" puts ranks 0 and 1 on one node, rank 2 on another, and
// goes on with its last number for further ranks. Not set: all share one.
inline std::vector<int> nodes_of_test(int size) {
  const char* text = std::getenv("RINGRED_TEST_NODES");
  if (text == nullptr || size == 1) return {};
  std::istringstream words(text);
  std::vector<int> nodes;
  for (int node = 0; static_cast<int>(nodes.size()) < size; nodes.push_back(node))
    if (int next = 0; words >> next) node = next;
  return nodes;
}

inline Nodes test_nodes(int size) {
  const std::vector<int> nodes = nodes_of_test(size);
  return Nodes(nodes.empty() ? std::vector<int>(static_cast<std::size_t>(size)) : nodes);
}

// What connects the nodes: the switchboard, or as RINGRED_TEST_NETWORK says: "sockets".
inline bool over_sockets() {
  const char* text = std::getenv("RINGRED_TEST_NETWORK");
  return text != nullptr && std::string(text) == "sockets";
}

// Whether ranks see each other's memory, and not only what they tell each other.
inline bool on_one_node(int size) {
  const std::vector<int> nodes = nodes_of_test(size);
  return nodes.empty() || nodes.front() == nodes.back();
}

class Engines {
 public:
  // `nodes`: the node of each rank; empty: all share one.
  Engines(int size, Settings settings, std::vector<int> lifelines = {})
      : Engines(size, std::move(settings), std::move(lifelines), nodes_of_test(size)) {}
  Engines(int size, Settings settings, std::vector<int> lifelines, const std::vector<int>& nodes) {
    settings.arena_bytes = (nodes.empty() ? std::size_t{256} : std::size_t{1024})
                           << 20;  // addresses for the tables of several groups
    std::vector<Engine::Setup> setups(static_cast<std::size_t>(size));
    std::vector<std::byte*> bases;
    std::vector<std::size_t> ranks, worlds, lengths;
    if (!nodes.empty() && over_sockets()) sockets_.connect(size);
    for (int rank = 0; rank < size; ++rank) {
      Engine::Setup& setup = setups[static_cast<std::size_t>(rank)];
      setup.rank = rank;
      setup.size = size;
      setup.arena = Communicator::make_arena(size, settings);
      setup.memory = Engine::Memory::make(*setup.arena, size);
      setup.memory.make_world(*setup.arena, rank, size, nodes, settings);
      setup.nodes = nodes;
      if (!nodes.empty())
        setup.network = over_sockets() ? make_socket_network(sockets_.of(rank)) : switchboard_.connect(rank);
      setup.settings = settings;
      setup.cores_suffice = settings.wait == "spin";
      setup.lifelines = lifelines.empty() ? std::vector<int>(static_cast<std::size_t>(size), -1) : lifelines;
      bases.push_back(setup.arena->segment().base());
      lengths.push_back(setup.arena->segment().size());
      ranks.push_back(setup.memory.rank->offset());
      worlds.push_back(setup.memory.world->offset());
    }
    for (Engine::Setup& setup : setups) {
      setup.bases = bases;
      for (std::size_t peer = 0; !nodes.empty() && peer < bases.size(); ++peer)
        if (nodes[peer] != nodes[static_cast<std::size_t>(setup.rank)]) setup.bases[peer] = nullptr;
      setup.lengths = lengths;
      setup.rank_offsets = ranks;
      setup.world_offsets = worlds;
      arenas_.push_back(setup.arena);
      setup.report = [this](const std::string& text) {
        const std::lock_guard lock(mutex_);
        reports_ += text;
      };
      setup.stacks = [this] {
        if (fail_stacks) throw std::bad_alloc();
        return std::string("File \"train.py\", line 7 in load\n");
      };
      engines_.push_back(std::make_unique<Engine>(std::move(setup)));
    }
  }

  Engine& operator[](int rank) { return *engines_[static_cast<std::size_t>(rank)]; }
  Switchboard& switchboard() { return switchboard_; }
  Arena& arena(int rank) { return *arenas_[static_cast<std::size_t>(rank)]; }
  int size() const { return static_cast<int>(engines_.size()); }
  std::string reports() {
    const std::lock_guard lock(mutex_);
    return reports_;
  }

  // body(engine) on a thread for each rank.
  template <class Body>
  void run(Body body) {
    std::vector<std::thread> threads;
    for (auto& engine : engines_)
      threads.emplace_back([&] {
        try {
          body(*engine);
        } catch (const std::exception& error) {
          report("rank", engine->rank(), std::string("uncaught: ") + error.what());
          engine->leave("its test failed");
        }
      });
    for (std::thread& thread : threads) thread.join();
  }

  std::atomic<bool> fail_stacks{false};

  // Adds a group on all its ranks.
  void connect(std::uint32_t number, const std::vector<int>& ranks) {
    std::vector<std::size_t> offsets;
    for (const int rank : ranks) offsets.push_back((*this)[rank].prepare_group(ranks));
    for (const int rank : ranks) (*this)[rank].connect_group(number, ranks, offsets, static_cast<int>(number));
  }

 private:
  Switchboard switchboard_;
  Sockets sockets_;
  std::vector<std::shared_ptr<Arena>> arenas_;
  std::vector<std::unique_ptr<Engine>> engines_;
  std::mutex mutex_;
  std::string reports_;
};

inline void wait(Engine& engine, const std::shared_ptr<Operation>& operation) {
  NoHooks hooks;
  engine.wait(*operation, hooks);
}

template <class Number>
Tensor tensor_of(std::vector<Number>& values, DType dtype, std::vector<std::int64_t> shape = {}) {
  Tensor tensor;
  tensor.input = reinterpret_cast<const std::byte*>(values.data());
  tensor.output = reinterpret_cast<std::byte*>(values.data());
  tensor.dtype = dtype;
  tensor.shape = shape.empty() ? std::vector<std::int64_t>{static_cast<std::int64_t>(values.size())} : shape;
  return tensor;
}

inline Request request_of(CallKind kind, std::string name, std::vector<Tensor> tensors, Op op = Op::sum) {
  Request request;
  request.kind = kind;
  request.op = op;
  request.name = std::move(name);
  request.tensors = std::move(tensors);
  return request;
}

}  // namespace ringred::check
