// The hash reads stripes of eight lanes of two words. A lane folds its words into its state with one product of 64 by
// 64 bits, whose two halves are combined by exclusive or:
//
//     state = fold((first ^ key) * (second ^ state))
//
// A lane waits for its previous product (about six cycles); eight lanes keep the multiplier busy, at 16 bytes a
// product. Lanes differ by key and start, stripes by the state that they meet, so no two places are interchangeable.
#include "csrc/reduce/hash.h"

#include <algorithm>
#include <cstring>

namespace ringred {
namespace {

__extension__ typedef unsigned __int128 Product;

constexpr std::size_t lanes = 8;
constexpr std::size_t stripe_bytes = lanes * 2 * sizeof(std::uint64_t);
constexpr std::size_t block_bytes = 4096;  // that count_different compares at once: stays in L1, many times a call

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): invertible, and every bit of the argument reaches every bit of
// the result.
constexpr std::uint64_t mixed(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// 64 bits without a pattern, another for each number: SplitMix64 started at 0.
constexpr std::uint64_t pattern(std::uint64_t number) {
  return mixed((number + 1) * 0x9e3779b97f4a7c15u);
}

constexpr std::uint64_t keys[lanes] = {pattern(0), pattern(1), pattern(2), pattern(3),
                                       pattern(4), pattern(5), pattern(6), pattern(7)};

std::uint64_t fold(std::uint64_t left, std::uint64_t right) {
  const Product product = static_cast<Product>(left) * right;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

std::uint64_t word_at(const std::byte* place) {
  std::uint64_t word;
  std::memcpy(&word, place, sizeof word);
  return word;
}

struct State {
  std::uint64_t lane[lanes];

  State() {
    for (std::size_t i = 0; i < lanes; ++i) lane[i] = pattern(lanes + i);
  }

  void add(const std::byte* stripe) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < lanes; ++i)
      lane[i] = fold(word_at(stripe + 16 * i) ^ keys[i], word_at(stripe + 16 * i + 8) ^ lane[i]);
  }
};

template <class Word>
std::size_t count_words(const std::byte* a, const std::byte* b, std::size_t count) {
  std::size_t different = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Word left, right;
    std::memcpy(&left, a + i * sizeof(Word), sizeof(Word));
    std::memcpy(&right, b + i * sizeof(Word), sizeof(Word));
    different += left != right;
  }
  return different;
}

std::size_t count_in_block(const std::byte* a, const std::byte* b, std::size_t count, std::size_t element_size) {
  if (element_size == 1) return count_words<std::uint8_t>(a, b, count);
  if (element_size == 2) return count_words<std::uint16_t>(a, b, count);
  if (element_size == 4) return count_words<std::uint32_t>(a, b, count);
  if (element_size == 8) return count_words<std::uint64_t>(a, b, count);
  std::size_t different = 0;
  for (std::size_t i = 0; i < count; ++i)
    different += std::memcmp(a + i * element_size, b + i * element_size, element_size) != 0;
  return different;
}

}  // namespace

std::uint64_t hash_bytes(const InstructionSet&, const void* data, std::size_t bytes) {
  const auto* next = static_cast<const std::byte*>(data);
  State state;
  std::size_t left = bytes;
  for (; left >= stripe_bytes; left -= stripe_bytes, next += stripe_bytes) state.add(next);
  if (left > 0) {
    // Padded with zeros; the number of bytes, below, tells the padding from zeros of the data.
    std::byte last[stripe_bytes] = {};
    std::memcpy(last, next, left);
    state.add(last);
  }
  std::uint64_t hash = mixed(bytes);
  for (const std::uint64_t lane : state.lane) hash = mixed(hash ^ lane) + keys[0];
  return mixed(hash);
}

std::size_t count_different(const void* a, const void* b, std::size_t count, std::size_t element_size) {
  const auto* left = static_cast<const std::byte*>(a);
  const auto* right = static_cast<const std::byte*>(b);
  if (element_size == 0) return 0;
  // Replicas differ in few places or not at all: most blocks are compared and done with.
  const std::size_t block = std::max<std::size_t>(1, block_bytes / element_size);
  std::size_t different = 0;
  for (std::size_t start = 0; start < count; start += block) {
    const std::size_t elements = std::min(block, count - start), offset = start * element_size;
    if (std::memcmp(left + offset, right + offset, elements * element_size) != 0)
      different += count_in_block(left + offset, right + offset, elements, element_size);
  }
  return different;
}

}  // namespace ringred
