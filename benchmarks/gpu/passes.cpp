// Kernels that pass over memory once: copies, packing, reductions, steps of optimizers.
#include <cstring>
#include <numeric>

#include "benchmarks/gpu/session.h"
#include "benchmarks/gpu/values.h"
#include "csrc/base/round.h"
#include "csrc/cuda/fusion.h"
#include "csrc/cuda/reduce.h"
#include "csrc/cuda/update.h"
#include "csrc/reduce/reduce.h"

namespace ringred::cuda {
namespace {

constexpr int poison = 0xff;  // nan in every float type

// `body` writes `bytes` at `result`: once into poison, to be compared, then to be timed, then compared again.
template <class Body>
Times checked_time(const Session& session, const std::string& name, const DeviceTable<std::byte>& result,
                   const DeviceTable<std::byte>& expected, const Body& body) {
  check(cudaMemsetAsync(result.data(), poison, result.size(), session.stream()), "poison a result");
  body();
  check_equal(result.data(), expected.data(), expected.size(), session.stream(), name);
  const Times times = session.time(body);
  check_equal(result.data(), expected.data(), expected.size(), session.stream(), name);
  return times;
}

std::vector<std::byte> converted(const std::vector<std::byte>& input, DType from, DType to, double factor) {
  const std::size_t count = input.size() / info(from).size;
  std::vector<std::byte> output(count * info(to).size);
  scale_kernel(instruction_set("auto"), from, to)(input.data(), output.data(), count, factor);
  return output;
}

std::vector<std::byte> bytes_of(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// Tensors' numbers of elements as in a transformer, until there are `count` in all.
std::vector<std::size_t> mixed_counts(std::size_t count) {
  constexpr std::size_t pattern[] = {1,       768,  17,      1024,  333,     3072,    50257,
                                     1 << 20, 4096, 4 << 20, 81920, 3 << 20, 1 << 18, 16 << 20};
  std::vector<std::size_t> counts;
  for (std::size_t k = 0; count > 0; ++k) {
    counts.push_back(std::min(count, pattern[k % std::size(pattern)]));
    count -= counts.back();
  }
  return counts;
}

struct Layout {
  const char* name;
  std::vector<std::size_t> counts;
  std::size_t unit;  // elements at whose multiples tensors begin in the buffer
  Goal goal;         // of packing
};

std::vector<Layout> layouts(std::size_t count) {
  const Goal goal{.share = 0.85};
  return {{"one tensor", {count}, 1, goal},
          {"mixed sizes", mixed_counts(count), 8, goal},
          {"mixed sizes, dense", mixed_counts(count), 1, {}}};
}

// A pass from one memory into another. Elements between tensors are not touched: they stay poison.
struct Pass {
  std::string name;
  DType from, to;
  Layout layout;
  bool packs;  // tensors, each at a multiple of 512 bytes, into the buffer; else back
};

struct Offsets {
  std::size_t tensor, buffer, count;  // in elements
};

std::vector<Offsets> offsets_of(const Layout& layout) {
  constexpr std::size_t tensor_unit = 256;  // 512 bytes of the smallest elements, as torch allocates
  std::vector<Offsets> offsets;
  std::size_t tensor = 0, buffer = 0;
  for (const std::size_t count : layout.counts) {
    offsets.push_back({tensor, buffer, count});
    tensor = round_up(tensor + count, tensor_unit);
    buffer = round_up(buffer + count, layout.unit);
  }
  return offsets;
}

void time_pass(Session& session, const Pass& pass) {
  constexpr double factor = 0.25;
  const std::vector<Offsets> offsets = offsets_of(pass.layout);
  const Offsets& last = offsets.back();
  const std::size_t tensors = last.tensor + last.count, buffer = last.buffer + last.count;
  const std::size_t from_size = info(pass.from).size, to_size = info(pass.to).size;
  const std::vector<std::byte> input =
      converted(bytes_of(values(pass.packs ? tensors : buffer, 1)), DType::f32, pass.from, 1);
  const std::vector<std::byte> whole = converted(input, pass.from, pass.to, factor);
  std::vector<std::byte> expected((pass.packs ? buffer : tensors) * to_size, std::byte{poison});
  const DeviceTable<std::byte> source = on_device(input), destination(expected.size());
  std::vector<Segment> segments;
  std::size_t count = 0;
  for (const Offsets& one : offsets) {
    const std::size_t from = pass.packs ? one.tensor : one.buffer, to = pass.packs ? one.buffer : one.tensor;
    segments.push_back({source.data() + from * from_size, destination.data() + to * to_size, one.count});
    std::memcpy(expected.data() + to * to_size, whole.data() + from * to_size, one.count * to_size);
    count += one.count;
  }
  const Fusion fusion(segments, pass.from, pass.to);
  const double bytes = static_cast<double>(count * (from_size + to_size) + fusion.piece_count() * sizeof(Piece));
  const Times times = checked_time(session, pass.name, destination, on_device(expected),
                                   [&] { fusion.launch(factor, session.stream()); });
  session.add({pass.name, bytes, pass.packs ? pass.layout.goal : Goal{}, {{"", times}}});
}

void time_copy(Session& session, std::size_t bytes) {
  const std::string name = "copy of " + std::to_string(bytes >> 20) + " MiB";
  const std::vector<std::byte> input = bytes_of(values(bytes / 4, 2));
  const DeviceTable<std::byte> source = on_device(input), destination(bytes);
  const Times times = checked_time(session, name, destination, source,
                                   [&] { copy_on_device(destination.data(), source.data(), bytes, session.stream()); });
  session.found_bandwidth(2 * static_cast<double>(bytes) / times.median);
  session.add({name, 2 * static_cast<double>(bytes), {}, {{"", times}}});
}

void time_reduction(Session& session, int inputs, DType dtype) {
  const std::size_t count = session.plan().large_bytes / info(dtype).size;
  const std::string name = "reduce " + std::to_string(inputs) + " inputs of " + std::string(info(dtype).name);
  std::vector<DeviceTable<std::byte>> tables;
  std::vector<std::vector<std::byte>> host;
  ReduceArrays arrays{};
  std::vector<const void*> addresses;
  for (int k = 0; k < inputs; ++k) {
    host.push_back(converted(bytes_of(values(count, static_cast<unsigned>(k))), DType::f32, dtype, 1));
    tables.push_back(on_device(host.back()));
    arrays.inputs[k] = tables.back().data();
    addresses.push_back(host.back().data());
  }
  std::vector<std::byte> sum(host[0].size());
  void* place = sum.data();
  reduce_kernel(instruction_set("auto"), dtype, Op::average)(addresses.data(), inputs, &place, 1, count, inputs);
  const DeviceTable<std::byte> result(sum.size());
  arrays.outputs[0] = result.data();
  arrays.input_count = inputs;
  arrays.output_count = 1;
  const Times times = checked_time(session, name, result, on_device(sum),
                                   [&] { reduce(arrays, count, dtype, Op::average, inputs, session.stream()); });
  session.add({name, static_cast<double>(inputs + 1) * static_cast<double>(sum.size()), {}, {{"", times}}});
}

struct Optimizer {
  const char* name;
  Rule rule;
  int states;
  Goal goal;
};

Rates rates_of(const Optimizer& optimizer) {
  Rates rates{};
  rates.learning_rate = 1e-3;
  rates.momentum = optimizer.rule == Rule::sgd ? 0.9 : 0;
  rates.weight_decay = optimizer.rule == Rule::adamw ? 0.01 : 0;
  rates.beta1 = 0.9;
  rates.beta2 = 0.999;
  rates.epsilon = 1e-8;
  rates.step = 3;
  return rates;
}

// A parameter in place, and the state, all of it changed by every call: compared after the first.
void time_update(Session& session, const Optimizer& optimizer, int parts) {
  const std::size_t count = session.plan().large_bytes / sizeof(float);
  const std::string name =
      std::string(optimizer.name) + ", " + std::to_string(parts) + (parts > 1 ? " parts" : " part");
  const Rates rates = rates_of(optimizer);
  std::vector<std::vector<float>> host;  // the parts, the parameter, the state
  std::vector<DeviceTable<float>> tables;
  for (int k = 0; k < parts + 1 + optimizer.states; ++k) {
    host.push_back(values(count, static_cast<unsigned>(k)));
    // exp_avg_sq is no less than 0.
    if (k == parts + 2)
      for (float& value : host.back()) value *= value;
    tables.push_back(on_device(host.back()));
  }
  UpdateSlice slice{};
  UpdateArrays arrays{};
  std::vector<const void*> gradients;
  for (int k = 0; k < parts; ++k) {
    slice.gradients[k] = tables[static_cast<std::size_t>(k)].data();
    gradients.push_back(host[static_cast<std::size_t>(k)].data());
  }
  const auto parameter = static_cast<std::size_t>(parts);
  slice.gradient_count = arrays.gradient_count = parts;
  slice.output_count = arrays.output_count = 1;
  slice.parameter = slice.outputs[0] = tables[parameter].data();
  for (int k = 0; k < optimizer.states; ++k) {
    slice.state[k] = tables[parameter + 1 + static_cast<std::size_t>(k)].data();
    arrays.state[k] = host[parameter + 1 + static_cast<std::size_t>(k)].data();
  }
  void* output = host[parameter].data();
  arrays.gradients = gradients.data();
  arrays.parameter = output;
  arrays.outputs = &output;
  const auto step = [&] { update(slice, count, DType::f32, optimizer.rule, rates, parts, 1, session.stream()); };
  step();
  update_kernel(instruction_set("auto"), DType::f32, optimizer.rule)(arrays, count, parts, 1, rates);
  for (std::size_t k = parameter; k < host.size(); ++k)
    check_equal(tables[k].data(), on_device(host[k]).data(), count * sizeof(float), session.stream(), name);
  const double arrays_moved = parts + 2 + 2 * optimizer.states;
  session.add(
      {name, arrays_moved * static_cast<double>(count * sizeof(float)), optimizer.goal, {{"", session.time(step)}}});
}

}  // namespace

void time_copies(Session& session) {
  time_copy(session, session.plan().large_bytes);
  time_copy(session, 4 * session.plan().large_bytes);
}

void time_fusion(Session& session) {
  for (const Layout& layout : layouts(session.plan().large_bytes / sizeof(float)))
    for (const bool packs : {true, false})
      for (const DType other : {DType::f16, DType::bf16, DType::f32}) {
        const DType from = packs ? DType::f32 : other, to = packs ? other : DType::f32;
        const std::string name = std::string(packs ? "pack " : "unpack ") + std::string(info(from).name) + " to " +
                                 std::string(info(to).name) + ", " + layout.name;
        session.attempt([&] { time_pass(session, {name, from, to, layout, packs}); });
      }
}

void time_reductions(Session& session) {
  for (const int inputs : {2, 4, 8}) session.attempt([&] { time_reduction(session, inputs, DType::f32); });
  for (const DType half : {DType::f16, DType::bf16}) session.attempt([&] { time_reduction(session, 4, half); });
}

void time_updates(Session& session) {
  const Goal goal{.share = 0.85};
  for (const Optimizer& optimizer : {Optimizer{"SGD with momentum", Rule::sgd, 1, {}},
                                     Optimizer{"Adam", Rule::adam, 2, goal}, Optimizer{"AdamW", Rule::adamw, 2, goal}})
    for (const int parts : {1, 4}) session.attempt([&] { time_update(session, optimizer, parts); });
}

}  // namespace ringred::cuda
