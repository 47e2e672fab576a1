// Arrays in the arenas of ranks that are threads, and what serial arithmetic makes of them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "csrc/base/mix.h"
#include "csrc/queue/parts.h"
#include "csrc/reduce/reduce.h"
#include "csrc/reduce/update.h"
#include "tests/local/engines.h"

namespace ringred::check {

using Bytes = std::vector<std::byte>;

inline bool same(const Bytes& left, const Bytes& right) {
  return left.size() == right.size() && (left.empty() || std::memcmp(left.data(), right.data(), left.size()) == 0);
}

// Numbers whose sums depend on their order, where they are rounded. They repeat, but not from part to part.
inline Bytes numbers_of(DType dtype, std::size_t count, std::uint64_t seed) {
  constexpr std::size_t period = 10007;
  const std::size_t bytes = info(dtype).size;
  Bytes numbers(count * bytes);
  for (std::size_t i = 0; i < std::min(count, period); ++i) {
    const std::uint64_t bits = mix(mix(seed + 1, i), seed);
    const double real = static_cast<double>(static_cast<std::int64_t>(bits)) * 0x1p-63 / (1 << (bits >> 8) % 8);
    const auto single = static_cast<float>(real);
    const auto integer = static_cast<std::int64_t>(bits) >> 8;
    const void* from = &integer;
    if (dtype == DType::f64) from = &real;
    if (dtype == DType::f32) from = &single;
    if (dtype == DType::bf16) from = reinterpret_cast<const std::byte*>(&single) + 2;
    std::memcpy(numbers.data() + i * bytes, from, bytes);
  }
  for (std::size_t done = period; done < count; done *= 2)
    std::memcpy(numbers.data() + done * bytes, numbers.data(), std::min(done, count - done) * bytes);
  return numbers;
}

// One array in each rank's arena, each at another offset in its page and in its cache line.
class Arrays {
 public:
  Arrays(Engines& engines, DType dtype, std::size_t count, std::uint64_t seed) : dtype_(dtype), count_(count) {
    for (int rank = 0; rank < engines.size(); ++rank) {
      const auto place = static_cast<std::size_t>(rank);
      const std::size_t lead = (5 * place + seed % 7) * info(dtype).size, bytes = count * info(dtype).size;
      others_.push_back(engines.arena(rank).allocate(4096 * (3 * place + 1)));
      blocks_.push_back(engines.arena(rank).allocate(lead + bytes));
      data_.push_back(blocks_.back()->data() + lead);
      fill(rank, seed);
    }
  }

  // Other numbers; `before` has them afterwards.
  void fill(int rank, std::uint64_t seed) {
    const auto place = static_cast<std::size_t>(rank);
    before.resize(data_.size());
    before[place] = numbers_of(dtype_, count_, seed * 64 + place);
    std::copy(before[place].begin(), before[place].end(), data_[place]);
  }

  const std::vector<std::byte*>& data() const { return data_; }
  // Of the ranks of this one's node.
  std::vector<std::byte*> data_here(int rank) const {
    const Nodes nodes = test_nodes(static_cast<int>(data_.size()));
    std::vector<std::byte*> here;
    for (const int neighbour : nodes.members(nodes.of(rank))) here.push_back(data(neighbour));
    return here;
  }
  std::byte* data(int rank) const { return data_[static_cast<std::size_t>(rank)]; }
  Bytes now(int rank) const { return {data(rank), data(rank) + count_ * info(dtype_).size}; }

  Tensor tensor(int rank) const {
    Tensor tensor;
    tensor.input = tensor.output = data(rank);
    tensor.dtype = dtype_;
    tensor.shape = {static_cast<std::int64_t>(count_)};
    return tensor;
  }
  Request request(int rank, std::string name, Op op, bool direct = true, bool norm = false) const {
    Request request = request_of(CallKind::allreduce, std::move(name), {tensor(rank)}, op);
    request.direct = direct;
    request.norm = norm;
    return request;
  }
  Request step(int rank, std::string name, Op op, std::shared_ptr<const Update> update) const {
    Request request = request_of(CallKind::update, std::move(name), {tensor(rank)}, op);
    request.update = std::move(update);
    return request;
  }

  std::vector<Bytes> before;  // by rank

 private:
  const DType dtype_;
  const std::size_t count_;
  std::vector<std::shared_ptr<Arena::Block>> others_, blocks_;
  std::vector<std::byte*> data_;
};

inline std::vector<const void*> at(const std::vector<Bytes>& arrays, std::size_t byte) {
  std::vector<const void*> places;
  for (const Bytes& array : arrays) places.push_back(array.data() + byte);
  return places;
}

// What one kernel makes of the arrays, in their order; `size` divides an average.
inline Bytes combined(DType dtype, Op op, const std::vector<Bytes>& arrays, int size) {
  Bytes result(arrays.front().size());
  void* output = result.data();
  reduce_kernel(instruction_set("auto"), dtype, op)(at(arrays, 0).data(), static_cast<int>(arrays.size()), &output, 1,
                                                    result.size() / info(dtype).size, size);
  return result;
}

// What each node makes of its ranks' arrays: as they are, where all share one.
inline std::vector<Bytes> by_node(DType dtype, Op op, const std::vector<Bytes>& arrays, int size) {
  const Nodes nodes = test_nodes(static_cast<int>(arrays.size()));
  if (!nodes.several()) return arrays;
  std::vector<Bytes> results;
  for (int node = 0; node < nodes.count(); ++node) {
    std::vector<Bytes> here;
    for (const int rank : nodes.members(node)) here.push_back(arrays[static_cast<std::size_t>(rank)]);
    results.push_back(combined(dtype, op, here, size));
  }
  return results;
}

// What the ranks make of their arrays: across nodes first each node of its own. Averages of integers are no sums of
// sums; of an average of halves each node divides its own.
inline Bytes reduced(DType dtype, Op op, const std::vector<Bytes>& arrays, int size) {
  const TypeClass type_class = info(dtype).type_class;
  if (op == Op::average && type_class == TypeClass::real)
    return combined(dtype, op, by_node(dtype, Op::sum, arrays, size), size);
  if (op == Op::average && type_class != TypeClass::half) return combined(dtype, op, arrays, size);
  const bool divided = op == Op::average && test_nodes(static_cast<int>(arrays.size())).several();
  return combined(dtype, divided ? Op::sum : op, by_node(dtype, op, arrays, size), size);
}

template <class Real>
long double squares_of_all(const Bytes& bytes, std::size_t begin, std::size_t end) {
  long double sum = 0;
  for (std::size_t i = begin; i < end; ++i) {
    Real number;
    std::memcpy(&number, bytes.data() + i * sizeof number, sizeof number);
    sum += static_cast<long double>(number) * number;
  }
  return sum;
}

inline long double squares_of(DType dtype, const Bytes& bytes, std::size_t begin, std::size_t end) {
  return dtype == DType::f32 ? squares_of_all<float>(bytes, begin, end) : squares_of_all<double>(bytes, begin, end);
}

// Squares added up in fp64 in 16 sums for each of some slices, as norm kernels do.
inline bool is_sum(double squares, long double exact, std::size_t count) {
  return std::fabs(squares - exact) <= (static_cast<long double>(count) / 16 + 256) * 0x1p-53L * exact;
}

// Elements of one turn of all members.
inline std::size_t turn_of(DType dtype, int size) {
  return Parts(std::size_t{1} << 40, info(dtype).size, static_cast<std::size_t>(size)).elements_of_turn();
}

// A short sleep of some ranks, of others in each round.
inline void stagger(int rank, std::uint64_t round) {
  const std::uint64_t die = mix(mix(7, round), static_cast<std::uint64_t>(rank));
  if (die % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(die / 3 % 400));
}

inline ErrorKind kind_of_error(Engine& engine, const std::shared_ptr<Operation>& operation, const std::string& part) {
  try {
    wait(engine, operation);
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find(part) != std::string::npos);
    return error.kind();
  }
  CHECK(!"an error");
  return ErrorKind::system;
}

}  // namespace ringred::check
