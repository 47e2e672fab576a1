// What an array argument is: where its elements lie, how many, of which type. Understands the buffer protocol (numpy),
// torch tensors (asked directly: their __dlpack__ takes ten times as long) and DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "csrc/base/types.h"

namespace ringred {

class ArrayView {
 public:
  enum class Access { read, write };

  // Throws a usage error that names the rule and what the argument is, for anything but a contiguous array in main
  // memory of a dtype that ringred knows (and that may be written, for Access::write).
  ArrayView(pybind11::handle array, Access access);
  ArrayView(const ArrayView&) = delete;
  ArrayView& operator=(const ArrayView&) = delete;

  std::byte* data() const { return data_; }
  std::size_t count() const { return count_; }
  std::size_t bytes() const { return count_ * info(dtype_).size; }
  DType dtype() const { return dtype_; }
  std::span<const std::int64_t> shape() const { return {shape_.data(), dimensions_}; }

 private:
  static constexpr std::size_t most_dimensions = 64;  // numpy's and torch's limit

  // Released with the view, also when its constructor throws later.
  struct Buffer {
    Py_buffer view{};
    ~Buffer() {
      if (view.obj) PyBuffer_Release(&view);
    }
  };

  void from_buffer(pybind11::handle array, Access access);
  void from_tensor(pybind11::handle tensor, Access access);
  void from_dlpack(pybind11::handle array, Access access);
  void add_extent(std::int64_t extent);

  std::byte* data_ = nullptr;
  std::size_t count_ = 1;
  DType dtype_ = DType::u8;
  std::size_t dimensions_ = 0;
  std::array<std::int64_t, most_dimensions> shape_;
  Buffer buffer_;
  pybind11::object keep_alive_{};  // a DLPack capsule, or an array that this view was taken from
};

// Throws a usage error where a result of `from` cannot go into `to`: another dtype or length, or memory that overlaps
// in part.
void check_result(const ArrayView& from, const ArrayView& to);

}  // namespace ringred
