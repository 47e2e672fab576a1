#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "csrc/base/error.h"
#include "csrc/cuda/elements.cuh"
#include "csrc/cuda/fusion.h"
#include "csrc/cuda/launch.h"

namespace ringred::cuda {
namespace {

constexpr unsigned lanes = 32, block_threads = 256, block_warps = block_threads / lanes;
// A warp with few elements spends its time waiting for the first; one with many is what a launch waits for at its end.
constexpr std::size_t least_piece = 512, most_piece = 4096;
constexpr std::size_t bytes_in_flight = 64;  // that a lane loads before it stores

template <class From, class To>
struct Scaled {
  using In = typename From::Stored;
  using Out = typename To::Stored;
  typename From::Accumulator factor;
  explicit Scaled(double by) : factor(static_cast<typename From::Accumulator>(by)) {}
  __device__ Out operator()(In value) const { return To::store(From::load(value) * factor); }
};

template <class Bits>
struct Copied {
  using In = Bits;
  using Out = Bits;
  explicit Copied(double) {}
  __device__ Out operator()(In value) const { return value; }
};

// Elements that one lane converts with accesses of 16 bytes on both sides.
template <class Convert>
constexpr unsigned step = access_bytes / std::min(sizeof(typename Convert::In), sizeof(typename Convert::Out));

template <class Convert, class In = typename Convert::In, class Out = typename Convert::Out>
__device__ __forceinline__ void convert_singly(const In* in, Out* out, unsigned start, unsigned end, unsigned lane,
                                               Convert convert) {
#pragma unroll 4
  for (unsigned i = start + lane; i < end; i += lanes) out[i] = convert(in[i]);
}

// The elements `start` to `end`, of which the first is at a multiple of 16 bytes on both sides; returns where it ended.
template <class Convert, unsigned vectors, class In = typename Convert::In, class Out = typename Convert::Out>
__device__ __forceinline__ unsigned convert_vectors(const In* in, Out* out, unsigned start, unsigned end, unsigned lane,
                                                    Convert convert) {
  constexpr unsigned wide = step<Convert>, stride = wide * lanes;
  for (; start + vectors * stride <= end; start += vectors * stride) {
    Vector<In, wide> loaded[vectors];
#pragma unroll
    for (unsigned v = 0; v < vectors; ++v) loaded[v] = vector_at<In, wide>(in + start + v * stride + lane * wide);
#pragma unroll
    for (unsigned v = 0; v < vectors; ++v) {
      Vector<Out, wide> result;
#pragma unroll
      for (unsigned k = 0; k < wide; ++k) result.element[k] = convert(loaded[v].element[k]);
      store_at(out + start + v * stride + lane * wide, result);
    }
  }
  return start;
}

// One warp for each piece.
template <class Convert>
__global__ void __launch_bounds__(block_threads) convert_pieces(const Piece* pieces, unsigned count, Convert convert) {
  const unsigned number = blockIdx.x * block_warps + threadIdx.x / lanes, lane = threadIdx.x % lanes;
  if (number >= count) return;
  const Piece piece = pieces[number];
  const auto* in = static_cast<const typename Convert::In*>(piece.source);
  auto* out = static_cast<typename Convert::Out*>(piece.destination);
  // The side of the smaller elements is at a multiple of 16 bytes less often: where it is, the other one may be, too.
  const bool narrow_in = sizeof *in <= sizeof *out;
  const std::size_t head = narrow_in ? elements_before_vector(in) : elements_before_vector(out);
  const bool together = elements_before_vector(in + head) == 0 && elements_before_vector(out + head) == 0;
  unsigned done = 0;
  if (together && head < piece.count) {
    constexpr unsigned vectors = bytes_in_flight / (step<Convert> * sizeof *in);
    convert_singly(in, out, 0, static_cast<unsigned>(head), lane, convert);
    done = convert_vectors<Convert, vectors>(in, out, static_cast<unsigned>(head), piece.count, lane, convert);
    done = convert_vectors<Convert, 1>(in, out, done, piece.count, lane, convert);
  }
  convert_singly(in, out, done, piece.count, lane, convert);
}

template <class Convert>
void launch_pieces(const Piece* pieces, unsigned count, double factor, cudaStream_t stream) {
  launch("of fused tensors", convert_pieces<Convert>, {(count + block_warps - 1) / block_warps, block_threads}, stream,
         pieces, count, Convert(factor));
}

using FloatElement = Plain<float, float>;
using DoubleElement = Plain<double, double>;

template <class From>
PiecesKernel scale_from(DType to) {
  switch (to) {
    case DType::f16:
      return launch_pieces<Scaled<From, HalfElement>>;
    case DType::bf16:
      return launch_pieces<Scaled<From, BFloatElement>>;
    case DType::f32:
      return launch_pieces<Scaled<From, FloatElement>>;
    default:
      return nullptr;
  }
}

PiecesKernel scale_kernel(DType from, DType to) {
  switch (from) {
    case DType::f16:
      return scale_from<HalfElement>(to);
    case DType::bf16:
      return scale_from<BFloatElement>(to);
    case DType::f32:
      return scale_from<FloatElement>(to);
    case DType::f64:
      return to == from ? launch_pieces<Scaled<DoubleElement, DoubleElement>> : nullptr;
    default:
      return nullptr;
  }
}

// Types of 16 bytes are copied as two elements of 8.
PiecesKernel copy_kernel(std::size_t size) {
  switch (size) {
    case 1:
      return launch_pieces<Copied<std::uint8_t>>;
    case 2:
      return launch_pieces<Copied<std::uint16_t>>;
    case 4:
      return launch_pieces<Copied<std::uint32_t>>;
    default:
      return launch_pieces<Copied<std::uint64_t>>;
  }
}

std::string pair_of(DType from, DType to) {
  return std::string(info(from).name) + " to " + std::string(info(to).name);
}

// How many elements a piece has, so that all warps that the device runs at the same time have one.
std::size_t piece_elements(std::size_t total) {
  const std::size_t warps = resident_blocks(convert_pieces<Copied<std::uint32_t>>, block_threads) * block_warps;
  const std::size_t even = total / warps / least_piece * least_piece;
  return std::clamp(even, least_piece, most_piece);
}

// Pieces begin at multiples of 512 elements of their segment: all but the last have its alignment.
std::vector<Piece> cut(std::span<const Segment> segments, DType from, DType to) {
  const std::size_t parts = info(from).size == 16 ? 2 : 1, in = info(from).size / parts, out = info(to).size / parts;
  std::size_t total = 0;
  int number = 0;
  for (const Segment& segment : segments) total += segment.count * parts;
  const std::size_t most = piece_elements(total);
  std::vector<Piece> pieces;
  for (const Segment& segment : segments) {
    const std::size_t count = segment.count * parts;
    if (count > 0) check_array(segment.source, from, "the source of segment", number);
    if (count > 0) check_array(segment.destination, to, "the destination of segment", number);
    for (std::size_t start = 0; start < count; start += most)
      pieces.push_back({static_cast<const std::byte*>(segment.source) + start * in,
                        static_cast<std::byte*>(segment.destination) + start * out,
                        static_cast<unsigned>(std::min(most, count - start))});
    ++number;
  }
  return pieces;
}

}  // namespace

Fusion::Fusion(std::span<const Segment> segments, DType from, DType to)
    : from_(from),
      scale_(scale_kernel(from, to)),
      copy_(from == to ? copy_kernel(info(from).size) : nullptr),
      pieces_(std::span<const Piece>{}) {
  if (scale_ == nullptr && copy_ == nullptr)
    fail_usage("Tensors are fused between float16, bfloat16 and float32, or without a conversion: it is from " +
               pair_of(from, to) + ". Convert the tensors first.");
  const std::vector<Piece> pieces = cut(segments, from, to);
  if (pieces.size() > std::numeric_limits<unsigned>::max())
    fail_usage("A fusion has at most 2^32 pieces of 4096 elements: it has " + std::to_string(pieces.size()) +
               ". Make several of them.");
  pieces_ = DeviceTable<Piece>(std::span<const Piece>(pieces));
}

void Fusion::launch(double factor, cudaStream_t stream) const {
  const PiecesKernel kernel = factor == 1 && copy_ != nullptr ? copy_ : scale_;
  if (kernel == nullptr)
    fail_usage("Only float16, bfloat16, float32 and float64 are scaled: the dtype is " + std::string(info(from_).name) +
               " and the factor " + std::to_string(factor) + ". Use the factor 1.");
  if (pieces_.size() > 0) kernel(pieces_.data(), static_cast<unsigned>(pieces_.size()), factor, stream);
}

std::vector<Segment> packed(std::span<const Place> places, void* buffer, DType buffer_dtype) {
  std::vector<Segment> segments;
  for (const Place& place : places)
    segments.push_back(
        {place.tensor, static_cast<std::byte*>(buffer) + place.offset * info(buffer_dtype).size, place.count});
  return segments;
}

std::vector<Segment> unpacked(std::span<const Place> places, const void* buffer, DType buffer_dtype) {
  std::vector<Segment> segments;
  for (const Place& place : places)
    segments.push_back(
        {static_cast<const std::byte*>(buffer) + place.offset * info(buffer_dtype).size, place.tensor, place.count});
  return segments;
}

}  // namespace ringred::cuda
