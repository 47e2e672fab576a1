// The part of the CUDA driver's binary interface that ringred uses, without a header of CUDA. tests/cuda/abi_test.cpp
// compares it with cuda.h, type by type and number by number, wherever that header is found.
//
// Handles are pointers to the structs that cuda.h names, so a stream of the CUDA runtime (cudaStream_t) is one of
// these.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUctx_st;
struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphNode_st;

namespace ringred::cuda {

using Context = CUctx_st*;
using Stream = CUstream_st*;
using Event = CUevent_st*;
using DevicePointer = std::uint64_t;
using AllocationHandle = std::uint64_t;  // physical memory of the virtual memory management
using Device = int;
using HostFunction = void (*)(void*);

enum class Result : unsigned {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  not_initialized = 3,
  stub_library = 34,
  device_unavailable = 46,
  no_device = 100,
  invalid_device = 101,
  invalid_context = 201,
  map_failed = 205,
  already_mapped = 208,
  peer_access_unsupported = 217,
  operating_system = 304,
  invalid_handle = 400,
  not_ready = 600,
  peer_access_already_enabled = 704,
  too_many_peers = 711,
  host_memory_already_registered = 712,
  not_permitted = 800,
  not_supported = 801,
  system_not_ready = 802,
  system_driver_mismatch = 803,
  capture_unsupported = 900,
  capture_invalidated = 901,
  capture_unjoined = 904,
  capture_isolation = 905,
  capture_implicit = 906,
  captured_event = 907,
  unknown = 999,
};

enum class DeviceAttribute : unsigned {
  compute_capability_major = 75,
  compute_capability_minor = 76,
  host_register_supported = 99,
  virtual_memory_supported = 102,
  posix_descriptor_supported = 103,
  ipc_supported = 125,
};

enum class PointerAttribute : unsigned {
  memory_type = 2,
  buffer_id = 7,
  is_managed = 8,
  device_ordinal = 9,
  is_legacy_ipc_capable = 10,
  range_start = 11,
  range_size = 12,
  allowed_handle_types = 14,
  memory_pool = 17,
  mapping_size = 18,
  mapping_base = 19,
  memory_block_id = 20,
};

enum class MemoryType : unsigned { none = 0, host = 1, device = 2 };

enum class CaptureStatus : unsigned { none = 0, active = 1, invalidated = 2 };
enum class CaptureMode : unsigned { global = 0, thread_local_only = 1, relaxed = 2 };

// Streams that exist without being made.
inline Stream legacy_stream() {
  return reinterpret_cast<Stream>(std::uintptr_t{1});
}
inline Stream per_thread_stream() {
  return reinterpret_cast<Stream>(std::uintptr_t{2});
}

inline constexpr unsigned stream_non_blocking = 1;
inline constexpr unsigned event_disable_timing = 2;
inline constexpr unsigned wait_value_geq = 0;  // until the word is as large, or up to 2^31 larger, modulo 2^32
inline constexpr unsigned write_value_default = 0;
inline constexpr unsigned ipc_lazy_peer_access = 1;
inline constexpr unsigned host_register_portable = 1;
inline constexpr unsigned host_register_device_map = 2;
inline constexpr unsigned handle_type_posix_descriptor = 1;
inline constexpr unsigned location_device = 1;
inline constexpr unsigned access_read_write = 3;

struct IpcHandle {
  char reserved[64];
};

struct Uuid {
  unsigned char bytes[16];
  friend bool operator==(const Uuid&, const Uuid&) = default;
};

struct MemoryLocation {
  unsigned type;
  int id;
};

struct AccessDescription {
  MemoryLocation location;
  unsigned flags;
};

}  // namespace ringred::cuda
