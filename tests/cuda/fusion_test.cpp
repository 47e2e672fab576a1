// Packing and unpacking: any sizes at any addresses give what the CPU's kernel gives for each tensor alone, and touch
// nothing else.
#include "csrc/cuda/fusion.h"

#include <cmath>
#include <limits>

#include "csrc/reduce/reduce.h"
#include "tests/cuda/cpu_kernels.h"
#include "tests/cuda/device.h"

namespace ringred::cuda {
namespace {

struct Pair {
  DType from, to;
};

std::vector<Pair> all_pairs() {
  std::vector<Pair> pairs;
  for (const DType from : {DType::f16, DType::bf16, DType::f32})
    for (const DType to : {DType::f16, DType::bf16, DType::f32}) pairs.push_back({from, to});
  pairs.push_back({DType::f64, DType::f64});
  return pairs;
}

Bytes scaled_on_cpu(const Bytes& input, Pair pair, double factor) {
  const std::size_t count = input.size() / info(pair.from).size;
  Bytes output(count * info(pair.to).size);
  scale_kernel(instruction_set("auto"), pair.from, pair.to)(input.data(), output.data(), count, factor);
  return output;
}

// The bytes of one tensor in a buffer.
Bytes part(const Bytes& all, std::size_t offset, std::size_t count, DType dtype) {
  const auto start = all.begin() + static_cast<std::ptrdiff_t>(offset * info(dtype).size);
  return {start, start + static_cast<std::ptrdiff_t>(count * info(dtype).size)};
}

// Tensors of these counts, each `shift` elements off 16 bytes, go into a buffer with gaps of `gap` elements and back.
void round_trip(const std::vector<std::size_t>& counts, Pair pair, double factor, std::size_t shift, std::size_t gap) {
  const std::size_t size = info(pair.from).size, wide = info(pair.to).size;
  std::vector<DeviceArray<std::byte>> tensors, results;
  std::vector<Bytes> values;
  std::vector<Place> places, back;
  std::size_t end = gap;
  for (const std::size_t count : counts) {
    values.push_back(random_elements(count, pair.from, static_cast<unsigned>(values.size())));
    tensors.emplace_back(values.back(), shift * size);
    results.emplace_back(count * size, shift * size);
    places.push_back({tensors.back().data(), end, count});
    back.push_back({results.back().data(), end, count});
    end += count + gap;
  }
  DeviceArray<std::byte> buffer(Bytes(end * wide, std::byte{0x5a}));
  Fusion(packed(places, buffer.data(), pair.to), pair.from, pair.to).launch(factor, nullptr);
  Fusion(unpacked(back, buffer.data(), pair.to), pair.to, pair.from).launch(1 / factor, nullptr);
  finish();
  const Bytes all = buffer.read();
  for (std::size_t k = 0; k < counts.size(); ++k) {
    const Bytes want = scaled_on_cpu(values[k], pair, factor);
    CHECK(same(part(all, places[k].offset, counts[k], pair.to), want, pair.to));
    const Bytes gap_bytes = part(all, places[k].offset - gap, gap, pair.to);
    CHECK(std::all_of(gap_bytes.begin(), gap_bytes.end(), [](std::byte byte) { return byte == std::byte{0x5a}; }));
    CHECK(same(tensors[k].read(), values[k], pair.from));
    CHECK(same(results[k].read(), scaled_on_cpu(want, {pair.to, pair.from}, 1 / factor), pair.from));
  }
}

TEST("every pair of types, at every alignment") {
  const std::vector<std::size_t> counts = {0, 1, 3, 0, 8, 31, 257, 1021};
  for (const Pair pair : all_pairs())
    for (std::size_t shift = 0; shift < 8; ++shift)
      for (const std::size_t gap : {std::size_t{0}, std::size_t{1}, 8 - shift})
        round_trip(counts, pair, 0.37, shift, gap);
}

TEST("pieces of large tensors meet without a seam") {
  for (const Pair pair : all_pairs())
    for (const std::size_t shift : {0u, 3u}) round_trip({4096, 5000, 2, 40001}, pair, 0.125, shift, 5);
  // The longest pieces.
  if (!check::sanitized) round_trip({1200001}, {DType::f32, DType::bf16}, 0.125, 0, 0);
}

TEST("thousands of tiny tensors in one launch") {
  std::vector<std::size_t> counts;
  for (std::size_t k = 0; k < (check::sanitized ? 300 : 3000); ++k) counts.push_back(k * 7 % 61);
  round_trip(counts, {DType::f32, DType::bf16}, 0.25, 1, 1);
}

TEST("the factor 1 copies every type bit by bit") {
  for (const DTypeInfo& row : dtype_table)
    for (const std::size_t shift : {0u, 1u}) {
      const std::size_t count = 3001;
      const Bytes values = random_elements(count, row.dtype, 5);
      const DeviceArray<std::byte> from(values, shift * row.size), to(values.size());
      const Segment segment{from.data(), to.data(), count};
      Fusion({&segment, 1}, row.dtype, row.dtype).launch(1, nullptr);
      finish();
      CHECK(to.read() == values);
    }
}

TEST("a factor that is nan or infinite reaches the result") {
  for (const double factor : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    round_trip({100}, {DType::f32, DType::f16}, factor, 0, 0);
}

TEST("no tensors and empty tensors launch nothing") {
  Fusion({}, DType::f32, DType::f16).launch(2, nullptr);
  const Segment empty{nullptr, nullptr, 0};
  const Fusion fusion({&empty, 1}, DType::f32, DType::f16);
  fusion.launch(2, nullptr);
  CHECK_EQ(fusion.piece_count(), 0u);
}

TEST("wrong types, factors and addresses are refused") {
  CHECK_THROWS(Fusion({}, DType::f64, DType::f32), "it is from float64 to float32. Convert the tensors first");
  CHECK_THROWS(Fusion({}, DType::i32, DType::f32), "it is from int32 to float32");
  CHECK_THROWS(Fusion({}, DType::i32, DType::i32).launch(0.5, nullptr), "the dtype is int32 and the factor 0.5");
  const DeviceArray<float> array(8);
  const Segment odd{reinterpret_cast<const char*>(array.data()) + 2, array.data() + 4, 1};
  CHECK_THROWS(Fusion({&odd, 1}, DType::f32, DType::f32), "the source of segment 0 (float32) is at");
  const Segment nowhere{array.data(), nullptr, 1};
  CHECK_THROWS(Fusion({&nowhere, 1}, DType::f32, DType::f16),
               "the destination of segment 0 (float16) is at 0. Make the tensor contiguous");
}

}  // namespace
}  // namespace ringred::cuda
