// The kernels beside the reductions: scaled conversions give the bits of scalar arithmetic on every instruction set,
// and the hash changes with every bit and every place.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <type_traits>

#include "csrc/reduce/hash.h"
#include "csrc/reduce/instruction_sets.h"
#include "csrc/reduce/reduce.h"
#include "tests/check.h"

using namespace ringred;
using check::shown;

namespace {

const double inf = std::numeric_limits<double>::infinity();
const double nan_factor = std::nan("");
// Counts around the width of a vector register; factors that are exact, that round, that overflow, that are no numbers.
const std::size_t counts[] = {0, 1, 3, 7, 15, 17, 31, 33, 63, 65, 127, 513, 1531};
const double factors[] = {1, 0.5, 1.0 / 3, -2, 1e30, 1e-30, 0, 1e300, inf, -inf, nan_factor};
const DType float_types[] = {DType::f16, DType::bf16, DType::f32, DType::f64};

using Bytes = std::vector<unsigned char>;

template <class Body>
void for_each_set(Body body) {
  for (const InstructionSet& set : instruction_sets())
    if (set.runs_here()) body(instruction_set(set.name));
}

template <class T>
T element(const Bytes& bytes, std::size_t i) {
  T value;
  std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
  return value;
}

// Random bits are numbers of every magnitude, subnormals, infinities and nans of every payload; the first elements are
// small numbers, so that products stay within the type.
template <class Small>
Bytes input_of(std::size_t count, std::size_t size, Small small) {
  std::mt19937 random(5);
  Bytes bytes(count * size);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
  for (std::size_t i = 0; i < count / 3; ++i) small(bytes.data() + i * size, static_cast<double>(random() % 200));
  return bytes;
}

// The kernel's output, which is the same on all sets.
Bytes scaled(DType from, DType to, const Bytes& input, double factor) {
  const std::size_t count = input.size() / info(from).size;
  std::vector<Bytes> results;
  for_each_set([&](const InstructionSet& set) {
    Bytes output(count * info(to).size + 1, 0xa5);
    scale_kernel(set, from, to)(input.data(), output.data(), count, factor);
    CHECK_EQ(output.back(), 0xa5);
    output.pop_back();
    results.push_back(output);
    if (info(from).size == info(to).size) {
      Bytes same = input;
      scale_kernel(set, from, to)(same.data(), same.data(), count, factor);
      CHECK(same == output);
    }
  });
  for (const Bytes& result : results) CHECK(result == results[0]);
  return results[0];
}

// Binary formats by their definition: `digits` bits after the leading one, `lowest` the exponent of the least normal
// number, bits of the exponent above them.
struct Format {
  int digits, lowest;
};

Format format_of(DType dtype) {
  return dtype == DType::f16 ? Format{10, -14} : Format{7, -126};
}

double value_of(std::uint16_t bits, Format format) {
  const int most = 1 << (15 - format.digits);
  const int exponent = (bits >> format.digits) & (most - 1), digits = bits & ((1 << format.digits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == most - 1) return digits ? std::nan("") : sign * inf;
  const int whole = exponent > 0 ? digits + (1 << format.digits) : digits;
  return sign * std::ldexp(whole, std::max(exponent, 1) - 1 + format.lowest - format.digits);
}

double load(DType dtype, const Bytes& bytes, std::size_t i) {
  if (dtype == DType::f64) return element<double>(bytes, i);
  if (dtype == DType::f32) return static_cast<double>(element<float>(bytes, i));
  return value_of(element<std::uint16_t>(bytes, i), format_of(dtype));
}

// The number of the type that is nearest, ties to even.
double rounded(double value, DType dtype) {
  if (dtype == DType::f64) return value;
  if (dtype == DType::f32) return static_cast<double>(static_cast<float>(value));
  if (value == 0 || !std::isfinite(value)) return value;
  const Format format = format_of(dtype);
  const int last = std::max(std::ilogb(value), format.lowest) - format.digits;
  const double result = std::copysign(std::ldexp(std::nearbyint(std::ldexp(value, -last)), last), value);
  return std::fabs(result) < std::ldexp(1.0, 2 - format.lowest) ? result : std::copysign(inf, value);
}

bool same(double left, double right) {
  if (std::isnan(left) || std::isnan(right)) return std::isnan(left) && std::isnan(right);
  return left == right && std::signbit(left) == std::signbit(right);
}

void check_floats(DType from, DType to, const Bytes& input, double factor) {
  const Bytes output = scaled(from, to, input, factor);
  for (std::size_t i = 0; i < input.size() / info(from).size; ++i) {
    const double value = load(from, input, i);
    const bool wide = from == DType::f64 || to == DType::f64;
    const double product =
        wide ? value * factor : static_cast<double>(static_cast<float>(value) * static_cast<float>(factor));
    const double wanted = rounded(product, to), got = load(to, output, i);
    if (!same(got, wanted))
      CHECK_EQ(shown(got) + " from " + shown(value) + " * " + shown(factor) + " as " + std::string(info(to).name),
               shown(wanted));
  }
}

template <class T>
T integer_product(T value, double factor) {
  using Limits = std::numeric_limits<T>;
  if (factor == 1) return value;
  // long double has 64 digits here or more than fp64 somewhere else: it holds every limit.
  const auto product = static_cast<long double>(static_cast<double>(value) * factor);
  if (std::isnan(product)) return 0;
  if (product >= static_cast<long double>(Limits::max())) return Limits::max();
  if (product <= static_cast<long double>(Limits::min())) return Limits::min();
  return static_cast<T>(product);
}

template <class T>
void check_integers(DType dtype) {
  for (const std::size_t count : counts)
    for (const double factor : factors) {
      Bytes input = input_of(count, sizeof(T), [](unsigned char* place, double value) {
        const T small = static_cast<T>(std::is_signed_v<T> ? value - 100 : value);
        std::memcpy(place, &small, sizeof small);
      });
      const T limits[] = {std::numeric_limits<T>::min(), std::numeric_limits<T>::max(), 0};
      if (count > 3) std::memcpy(input.data() + input.size() - sizeof limits, limits, sizeof limits);
      const Bytes output = scaled(dtype, dtype, input, factor);
      for (std::size_t i = 0; i < count; ++i) {
        const T wanted = integer_product(element<T>(input, i), factor);
        if (element<T>(output, i) != wanted)
          CHECK_EQ(std::to_string(element<T>(output, i)) + " from " + std::to_string(element<T>(input, i)) + " * " +
                       std::to_string(factor),
                   std::to_string(wanted));
      }
    }
}

template <class Real>
void store_small(unsigned char* place, double value) {
  const Real small = static_cast<Real>((value - 100) / 7);
  std::memcpy(place, &small, sizeof small);
}

Bytes floats(DType dtype, std::size_t count) {
  if (dtype == DType::f64) return input_of(count, 8, store_small<double>);
  if (dtype == DType::f32) return input_of(count, 4, store_small<float>);
  return input_of(count, 2, [&](unsigned char* place, double value) {
    // 1 and more, below 2: the exponent of 1 and random digits.
    const std::uint16_t one = dtype == DType::f16 ? 0x3c00 : 0x3f80;
    const auto bits = static_cast<std::uint16_t>(one | (static_cast<unsigned>(value) & 0x7f));
    std::memcpy(place, &bits, sizeof bits);
  });
}

// `bytes` at an offset from an aligned address.
std::uint64_t hash_at(const InstructionSet& set, const Bytes& bytes, std::size_t offset) {
  Bytes moved(bytes.size() + offset + 64);
  const std::size_t start = (64 - reinterpret_cast<std::uintptr_t>(moved.data()) % 64) % 64;
  moved.resize(moved.size() + start);
  std::copy(bytes.begin(), bytes.end(), moved.begin() + static_cast<std::ptrdiff_t>(start + offset));
  return hash_bytes(set, moved.data() + start + offset, bytes.size());
}

std::uint64_t hash_of(const Bytes& bytes) {
  return hash_bytes(instruction_set("auto"), bytes.data(), bytes.size());
}

Bytes random_bytes(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
  return bytes;
}

}  // namespace

TEST("floating-point numbers are scaled and converted in one rounding") {
  for (const DType from : float_types)
    for (const DType to : float_types)
      for (const std::size_t count : counts)
        for (const double factor : factors) {
          if (from == to && factor == 1) continue;
          check_floats(from, to, floats(from, count), factor);
        }
}

TEST("every half is scaled and converted") {
  Bytes all(131072);
  for (std::size_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    std::memcpy(all.data() + 2 * i, &bits, sizeof bits);
  }
  for (const DType from : {DType::f16, DType::bf16})
    for (const DType to : float_types)
      for (const double factor : {0.5, 1.0 / 3, 1e-5}) check_floats(from, to, all, factor);
}

TEST("float64 goes to half types in one rounding, not by way of float32") {
  // Beside every tie by less than float32 tells: two roundings would go to the even neighbour.
  for (const DType to : {DType::f16, DType::bf16}) {
    const Format format = format_of(to);
    const auto infinity = static_cast<std::uint16_t>(((1 << (15 - format.digits)) - 1) << format.digits);
    std::vector<double> values;
    for (std::uint16_t bits = 0; bits + 1 < infinity; ++bits) {
      const double low = value_of(bits, format), tie = low + (value_of(bits + 1, format) - low) / 2;
      for (const double value : {std::nextafter(tie, 0.0), tie, std::nextafter(tie, inf)}) {
        values.push_back(value);
        values.push_back(-value);
      }
    }
    Bytes input(values.size() * sizeof(double));
    std::memcpy(input.data(), values.data(), input.size());
    check_floats(DType::f64, to, input, 1);
  }
}

TEST("integers are truncated toward zero and saturate") {
  check_integers<std::int8_t>(DType::i8);
  check_integers<std::uint8_t>(DType::u8);
  check_integers<std::int16_t>(DType::i16);
  check_integers<std::uint16_t>(DType::u16);
  check_integers<std::int32_t>(DType::i32);
  check_integers<std::uint32_t>(DType::u32);
  check_integers<std::int64_t>(DType::i64);
  check_integers<std::uint64_t>(DType::u64);
}

TEST("both parts of complex numbers are scaled") {
  for (const std::size_t count : counts)
    for (const double factor : factors) {
      CHECK(scaled(DType::c64, DType::c64, floats(DType::f32, 2 * count), factor) ==
            scaled(DType::f32, DType::f32, floats(DType::f32, 2 * count), factor));
      CHECK(scaled(DType::c128, DType::c128, floats(DType::f64, 2 * count), factor) ==
            scaled(DType::f64, DType::f64, floats(DType::f64, 2 * count), factor));
    }
}

TEST("with a factor of 1 every dtype is copied, signalling nans and large integers too") {
  for (const DTypeInfo& row : dtype_table)
    for (const std::size_t count : counts) {
      const Bytes input = random_bytes(count * row.size, 3);
      CHECK(scaled(row.dtype, row.dtype, input, 1) == input);
    }
}

TEST("scaled conversions between other dtypes are refused") {
  for (const DTypeInfo& from : dtype_table)
    for (const DTypeInfo& to : dtype_table) {
      const auto is_float = [](DType dtype) { return std::ranges::count(float_types, dtype) > 0; };
      const bool allowed = from.dtype == to.dtype || (is_float(from.dtype) && is_float(to.dtype));
      for_each_set([&](const InstructionSet& set) {
        if (allowed)
          CHECK(scale_kernel(set, from.dtype, to.dtype) != nullptr);
        else
          CHECK_THROWS(scale_kernel(set, from.dtype, to.dtype), "it is from " + std::string(from.name) + " to ");
      });
    }
}

TEST("hashes of all lengths differ, and do not depend on the alignment or the set") {
  std::set<std::uint64_t> seen;
  for (std::size_t length = 0; length <= 300; ++length)
    for (const int byte : {0, 255, 1}) {
      const Bytes bytes(length, static_cast<unsigned char>(byte));
      const std::uint64_t hash = hash_of(bytes);
      if (length > 0 || byte == 0) CHECK(seen.insert(hash).second);
      for_each_set([&](const InstructionSet& set) {
        for (const std::size_t offset : {0u, 1u, 3u, 8u, 31u, 63u}) CHECK_EQ(hash_at(set, bytes, offset), hash);
      });
    }
  CHECK_EQ(hash_bytes(instruction_set("auto"), nullptr, 0), hash_of({}));
}

TEST("every bit changes the hash, and about half of its bits") {
  for (const std::size_t length : {1u, 8u, 15u, 16u, 17u, 128u, 129u, 300u, 1000u}) {
    Bytes bytes = random_bytes(length, 9);
    const std::uint64_t hash = hash_of(bytes);
    std::set<std::uint64_t> seen{hash};
    int fewest = 64, most = 0;
    double total = 0;
    for (std::size_t bit = 0; bit < 8 * length; ++bit) {
      bytes[bit / 8] = static_cast<unsigned char>(bytes[bit / 8] ^ (1 << bit % 8));
      const std::uint64_t other = hash_of(bytes);
      bytes[bit / 8] = static_cast<unsigned char>(bytes[bit / 8] ^ (1 << bit % 8));
      CHECK(seen.insert(other).second);
      const int changed = std::popcount(hash ^ other);
      fewest = std::min(fewest, changed);
      most = std::max(most, changed);
      total += changed;
    }
    // The number of changed bits is binomial, with a deviation of 4: of 8000 flips none is 6 deviations off, and the
    // mean of n flips is within 5 deviations of a mean.
    CHECK(fewest >= 32 - 24);
    CHECK(most <= 32 + 24);
    CHECK(std::fabs(total / static_cast<double>(8 * length) - 32) <
          5 * 4 / std::sqrt(8.0 * static_cast<double>(length)));
  }
}

TEST("exchanged blocks change the hash") {
  for (const std::size_t block : {1u, 2u, 4u, 8u, 16u, 128u, 256u}) {
    const std::size_t blocks = 2048 / block;
    const Bytes bytes = random_bytes(2048, 13);
    const std::uint64_t hash = hash_of(bytes);
    const auto at = [&](std::size_t i) { return static_cast<std::ptrdiff_t>(i * block); };
    for (std::size_t i = 0; i < std::min<std::size_t>(blocks, 40); ++i)
      for (std::size_t j = i + 1; j < blocks; ++j) {
        Bytes exchanged = bytes;
        std::swap_ranges(exchanged.begin() + at(i), exchanged.begin() + at(i + 1), exchanged.begin() + at(j));
        CHECK(exchanged == bytes || hash_of(exchanged) != hash);
      }
  }
}

TEST("two small differences do not cancel") {
  // The same bit or neighbouring bits of two words, as when two elements are one unit in the last place off.
  Bytes bytes(512);
  std::set<std::uint64_t> seen{hash_of(bytes)};
  for (std::size_t first = 0; first < 4096; first += 3)
    for (std::size_t second = first + 1; second < 4096; second += 61) {
      Bytes other = bytes;
      other[first / 8] = static_cast<unsigned char>(other[first / 8] ^ (1 << first % 8));
      other[second / 8] = static_cast<unsigned char>(other[second / 8] ^ (1 << second % 8));
      CHECK(seen.insert(hash_of(other)).second);
    }
}

TEST("elements that differ are counted") {
  for (const std::size_t size : {1u, 2u, 4u, 8u, 16u, 3u, 5000u})
    for (const std::size_t count : {0u, 1u, 7u, 255u, 4097u, 9001u}) {
      if (size * count > 1000000) continue;
      const Bytes a = random_bytes(size * count, 17);
      Bytes b = a;
      CHECK_EQ(count_different(a.data(), b.data(), count, size), 0u);
      std::mt19937 random(19);
      std::set<std::size_t> changed;
      for (std::size_t k = 0; k < 20 && !b.empty(); ++k) {
        const std::size_t place = random() % b.size();
        b[place] = static_cast<unsigned char>(~a[place]);
        changed.insert(place / size);
      }
      CHECK_EQ(count_different(a.data(), b.data(), count, size), changed.size());
      for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<unsigned char>(~a[i]);
      CHECK_EQ(count_different(a.data(), b.data(), count, size), count);
    }
}
