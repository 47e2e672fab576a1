// The DLPack structures, as its specification gives them (version 1.3, dmlc.github.io/dlpack).
#pragma once

#include <cstdint>

namespace ringred::dlpack {

constexpr std::int32_t cpu = 1, cuda_host = 3;
constexpr std::uint64_t flag_read_only = 1;

enum Code : std::uint8_t {
  code_int = 0,
  code_uint = 1,
  code_float = 2,
  code_bfloat = 4,
  code_complex = 5,
  code_bool = 6
};

struct Device {
  std::int32_t type, id;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
  friend bool operator==(const DataType&, const DataType&) = default;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t dimensions;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: contiguous
  std::uint64_t byte_offset;
};

struct Managed {  // capsule "dltensor"
  Tensor tensor;
  void* manager;
  void (*deleter)(Managed*);
};

struct Versioned {  // capsule "dltensor_versioned"
  std::uint32_t major, minor;
  void* manager;
  void (*deleter)(Versioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// What a type of arrays offers as its `__dlpack_c_exchange_api__`, a capsule "dlpack_exchange_api". Older versions are
// chained to newer ones.
struct Exchange {
  std::uint32_t major, minor;
  const Exchange* previous;
  void* others[3];
  int (*describe)(void* array, Tensor* found);  // null: not offered. It gives no ownership; not 0: a Python error
};

}  // namespace ringred::dlpack
