// Steps of an optimizer on ranks that are threads, and a serial optimizer to compare them with.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "csrc/queue/parts.h"
#include "csrc/reduce/update.h"
#include "tests/local/arena_arrays.h"

namespace ringred::check {

// An optimizer that has all state in one place, and takes each stretch in one call of the kernel. Across nodes it adds
// up what each node has first.
struct Serial {
  DType dtype;
  int size;
  Bytes parameters, states[3];
  std::vector<Bytes> gradients = {};  // after a step: the members'

  Serial(DType type, int members, const Bytes& start) : dtype(type), size(members), parameters(start) {
    for (Bytes& state : states) state.resize(start.size());
  }

  void step(const Update& update, Op op, const std::vector<Bytes>& given) {
    const std::size_t bytes = info(dtype).size;
    gradients = given;
    for (const Update::Stretch& stretch : update.stretches) {
      const std::size_t from = stretch.begin * bytes, count = stretch.end - stretch.begin;
      const std::vector<Bytes> sums = by_node(dtype, Op::sum, given, size);
      const std::vector<const void*> inputs = at(sums, from);
      Bytes average(count * bytes);
      void* output = parameters.data() + from;
      UpdateArrays arrays{.gradients = inputs.data(),
                          .gradient_count = static_cast<int>(inputs.size()),
                          .parameter = output,
                          .outputs = &output,
                          .output_count = 1,
                          .state = {},
                          .average = average.data()};
      for (std::size_t k = 0; k < 3; ++k) arrays.state[k] = states[k].data() + from;
      update_kernel(instruction_set("auto"), dtype, update.rule)(arrays, count, op == Op::average ? size : 1,
                                                                 update.factor, update.rates[stretch.rates]);
      if (!update.keeps_gradients) continue;
      for (Bytes& one : gradients) std::memcpy(one.data() + from, average.data(), average.size());
    }
  }
};

inline constexpr Rates plain_rates{.learning_rate = 0.01,
                                   .weight_decay = 0.05,
                                   .momentum = 0.9,
                                   .dampening = 0.1,
                                   .beta1 = 0.9,
                                   .beta2 = 0.99,
                                   .epsilon = 1e-6,
                                   .step = 1,
                                   .nesterov = false,
                                   .maximize = false,
                                   .amsgrad = false,
                                   .first = true};

// Two kinds of rates, and elements between and after the stretches that no stretch has.
inline Update update_of(Rule rule, std::size_t count) {
  Update update;
  update.rule = rule;
  update.factor = 0.37;
  update.rates = {plain_rates, plain_rates};
  update.rates[1].learning_rate = 0.3, update.rates[1].nesterov = true, update.rates[1].amsgrad = true;
  std::size_t begin = 0;
  for (const std::size_t end : {count / 5, count / 2, count - count / 8}) {
    if (begin < end) update.stretches.push_back({begin, end, static_cast<std::uint32_t>(update.stretches.size() % 2)});
    begin = std::min(end + end / 16, count);
  }
  return update;
}

// Optimizer state of each member's parts, in memory of its own. Every node has all of it.
struct States {
  States(std::size_t count, DType dtype, int size, bool third)
      : nodes(test_nodes(size)),
        parts(count, info(dtype).size, static_cast<std::size_t>(nodes.columns())),
        bytes(info(dtype).size),
        kept(static_cast<std::size_t>(size)) {
    for (std::size_t member = 0; member < kept.size(); ++member) {
      std::size_t owned = 0;
      for (const int column : nodes.columns_of(static_cast<int>(member)))
        owned += parts.owned(static_cast<std::size_t>(column));
      for (std::size_t k = 0; k < (third ? 3 : 2); ++k) kept[member][k].resize(owned * bytes);
    }
  }

  std::array<std::byte*, 3> of(int rank) {
    std::array<std::byte*, 3> places{};
    for (std::size_t k = 0; k < 3; ++k)
      if (Bytes& state = kept[static_cast<std::size_t>(rank)][k]; !state.empty()) places[k] = state.data();
    return places;
  }

  bool hold(const Bytes& whole, std::size_t k) const {
    bool equal = true;
    for (std::size_t member = 0; member < kept.size(); ++member) {
      std::size_t at = 0;
      for (std::size_t turn = 0; turn < parts.turns(); ++turn)
        for (const int column : nodes.columns_of(static_cast<int>(member))) {
          const Parts::Part part = parts.of(turn, static_cast<std::size_t>(column));
          const std::size_t length = (part.end - part.begin) * bytes;
          if (length > 0)
            equal = equal && std::memcmp(kept[member][k].data() + at, whole.data() + part.begin * bytes, length) == 0;
          at += length;
        }
    }
    return equal;
  }

  const Nodes nodes;
  const Parts parts;
  const std::size_t bytes;
  std::vector<std::array<Bytes, 3>> kept;
};

struct Training {
  DType dtype;
  std::size_t count;
  Op op;
  bool keeps_gradients, shares_parameters;
  int steps;
};

// Some steps, each of which leaves what a serial optimizer leaves, on all ranks.
inline void check_training(Engines& engines, const Training& training, Update update) {
  const auto& [dtype, count, op, keeps, shares, steps] = training;
  const int size = engines.size();
  Arrays parameters(engines, dtype, count, 1), gradients(engines, dtype, count, 2);
  const Nodes nodes = test_nodes(size);
  const auto writes = [&](int rank) { return !shares || nodes.place(rank) == 0; };
  for (int rank = 1; rank < size; ++rank)
    if (writes(rank)) std::memcpy(parameters.data(rank), parameters.data(0), parameters.before[0].size());
  States states(count, dtype, size, update.rule != Rule::sgd);
  Serial serial(dtype, size, parameters.before[0]);
  update.keeps_gradients = keeps;
  update.shares_parameters = shares;
  for (int step = 0; step < steps; ++step) {
    for (Rates& rates : update.rates) rates.step = step + 1, rates.first = step == 0;
    const auto seed = static_cast<std::uint64_t>(10 + step);
    for (int rank = 0; rank < size; ++rank) gradients.fill(rank, seed);
    std::vector<Bytes> found(static_cast<std::size_t>(size));  // at once, by each rank for itself
    engines.run([&](Engine& engine) {
      stagger(engine.rank(), seed);
      auto mine = std::make_shared<Update>(update);
      mine->states = states.of(engine.rank());
      mine->parameters = parameters.data_here(engine.rank());
      if (shares) mine->parameters.resize(1);
      wait(engine, engine.submit(0, gradients.step(engine.rank(), "step", op, mine)));
      found[static_cast<std::size_t>(engine.rank())] = parameters.now(engine.rank());
    });
    serial.step(update, op, gradients.before);
    for (int rank = 0; rank < size; ++rank) {
      const auto place = static_cast<std::size_t>(rank);
      CHECK(same(found[place], writes(rank) ? serial.parameters : parameters.before[place]));
      CHECK(same(gradients.now(rank), serial.gradients[place]));
    }
    for (std::size_t k = 0; k < (update.rule == Rule::sgd ? 1 : 3); ++k) CHECK(states.hold(serial.states[k], k));
  }
}

}  // namespace ringred::check
