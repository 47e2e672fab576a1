// What csrc/cuda/abi.h and functions.h say of the CUDA driver, against cuda.h. Built where that header is found.
#include <cuda.h>
#include <cudaTypedefs.h>

#include <cstddef>
#include <set>
#include <string>
#include <type_traits>

#include "csrc/cuda/functions.h"
#include "tests/check.h"

using namespace ringred::cuda;

namespace {

template <class Type>
constexpr bool is_number = std::is_integral_v<Type> || std::is_enum_v<Type>;
template <class Type>
constexpr bool is_struct = std::is_class_v<Type> && requires { sizeof(Type); };  // opaque ones have no size

// Whether two types are passed alike: numbers and enums by size, structs by size and alignment, pointers by what they
// point to.
template <class Ours, class Theirs>
struct PassedAlike {
  static constexpr bool value = [] {
    if constexpr (std::is_same_v<Ours, Theirs>) {
      return true;
    } else if constexpr (is_number<Ours> && is_number<Theirs>) {
      return sizeof(Ours) == sizeof(Theirs);
    } else if constexpr (is_struct<Ours> && is_struct<Theirs>) {
      return sizeof(Ours) == sizeof(Theirs) && alignof(Ours) == alignof(Theirs);
    } else {
      return false;
    }
  }();
};
template <class Ours, class Theirs>
struct PassedAlike<Ours*, Theirs*> : PassedAlike<std::remove_const_t<Ours>, std::remove_const_t<Theirs>> {};
template <class Result1, class Result2, class... Ours, class... Theirs>
  requires(sizeof...(Ours) == sizeof...(Theirs))
struct PassedAlike<Result1 (*)(Ours...), Result2 (*)(Theirs...)> {
  static constexpr bool value = PassedAlike<Result1, Result2>::value && (PassedAlike<Ours, Theirs>::value && ...);
};

// The comparison itself: it must tell a stream from an event, a word from a pair of them.
static_assert(!PassedAlike<Stream, CUevent>::value);
static_assert(!PassedAlike<std::uint32_t*, std::uint64_t*>::value);
static_assert(!PassedAlike<Result (*)(Stream), CUresult (*)(CUstream, int)>::value);

template <class Ours, class Theirs>
constexpr bool equal(Ours ours, Theirs theirs) {
  return static_cast<unsigned>(ours) == static_cast<unsigned>(theirs);
}

static_assert(equal(Result::success, CUDA_SUCCESS));
static_assert(equal(Result::invalid_value, CUDA_ERROR_INVALID_VALUE));
static_assert(equal(Result::out_of_memory, CUDA_ERROR_OUT_OF_MEMORY));
static_assert(equal(Result::not_initialized, CUDA_ERROR_NOT_INITIALIZED));
static_assert(equal(Result::stub_library, CUDA_ERROR_STUB_LIBRARY));
static_assert(equal(Result::device_unavailable, CUDA_ERROR_DEVICE_UNAVAILABLE));
static_assert(equal(Result::no_device, CUDA_ERROR_NO_DEVICE));
static_assert(equal(Result::invalid_device, CUDA_ERROR_INVALID_DEVICE));
static_assert(equal(Result::invalid_context, CUDA_ERROR_INVALID_CONTEXT));
static_assert(equal(Result::map_failed, CUDA_ERROR_MAP_FAILED));
static_assert(equal(Result::already_mapped, CUDA_ERROR_ALREADY_MAPPED));
static_assert(equal(Result::peer_access_unsupported, CUDA_ERROR_PEER_ACCESS_UNSUPPORTED));
static_assert(equal(Result::operating_system, CUDA_ERROR_OPERATING_SYSTEM));
static_assert(equal(Result::invalid_handle, CUDA_ERROR_INVALID_HANDLE));
static_assert(equal(Result::not_ready, CUDA_ERROR_NOT_READY));
static_assert(equal(Result::peer_access_already_enabled, CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED));
static_assert(equal(Result::too_many_peers, CUDA_ERROR_TOO_MANY_PEERS));
static_assert(equal(Result::host_memory_already_registered, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED));
static_assert(equal(Result::not_permitted, CUDA_ERROR_NOT_PERMITTED));
static_assert(equal(Result::not_supported, CUDA_ERROR_NOT_SUPPORTED));
static_assert(equal(Result::system_not_ready, CUDA_ERROR_SYSTEM_NOT_READY));
static_assert(equal(Result::system_driver_mismatch, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH));
static_assert(equal(Result::capture_unsupported, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
static_assert(equal(Result::capture_invalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
static_assert(equal(Result::capture_unjoined, CUDA_ERROR_STREAM_CAPTURE_UNJOINED));
static_assert(equal(Result::capture_isolation, CUDA_ERROR_STREAM_CAPTURE_ISOLATION));
static_assert(equal(Result::capture_implicit, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT));
static_assert(equal(Result::captured_event, CUDA_ERROR_CAPTURED_EVENT));
static_assert(equal(Result::unknown, CUDA_ERROR_UNKNOWN));
// The errors after which driver.cpp calls a context lost.
static_assert(equal(700, CUDA_ERROR_ILLEGAL_ADDRESS) && equal(702, CUDA_ERROR_LAUNCH_TIMEOUT) &&
              equal(710, CUDA_ERROR_ASSERT) && equal(714, CUDA_ERROR_HARDWARE_STACK_ERROR) &&
              equal(719, CUDA_ERROR_LAUNCH_FAILED) && equal(214, CUDA_ERROR_ECC_UNCORRECTABLE) &&
              equal(220, CUDA_ERROR_NVLINK_UNCORRECTABLE));

static_assert(equal(DeviceAttribute::compute_capability_major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR));
static_assert(equal(DeviceAttribute::compute_capability_minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR));
static_assert(equal(DeviceAttribute::host_register_supported, CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED));
static_assert(equal(DeviceAttribute::virtual_memory_supported,
                    CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED));
static_assert(equal(DeviceAttribute::posix_descriptor_supported,
                    CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED));
static_assert(equal(DeviceAttribute::ipc_supported, CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED));

static_assert(equal(PointerAttribute::memory_type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE));
static_assert(equal(PointerAttribute::buffer_id, CU_POINTER_ATTRIBUTE_BUFFER_ID));
static_assert(equal(PointerAttribute::is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED));
static_assert(equal(PointerAttribute::device_ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL));
static_assert(equal(PointerAttribute::is_legacy_ipc_capable, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE));
static_assert(equal(PointerAttribute::range_start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR));
static_assert(equal(PointerAttribute::range_size, CU_POINTER_ATTRIBUTE_RANGE_SIZE));
static_assert(equal(PointerAttribute::allowed_handle_types, CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES));
static_assert(equal(PointerAttribute::memory_pool, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE));
static_assert(equal(PointerAttribute::mapping_size, CU_POINTER_ATTRIBUTE_MAPPING_SIZE));
static_assert(equal(PointerAttribute::mapping_base, CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR));
static_assert(equal(PointerAttribute::memory_block_id, CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID));

static_assert(equal(MemoryType::host, CU_MEMORYTYPE_HOST) && equal(MemoryType::device, CU_MEMORYTYPE_DEVICE));
static_assert(equal(CaptureStatus::none, CU_STREAM_CAPTURE_STATUS_NONE) &&
              equal(CaptureStatus::active, CU_STREAM_CAPTURE_STATUS_ACTIVE) &&
              equal(CaptureStatus::invalidated, CU_STREAM_CAPTURE_STATUS_INVALIDATED));
static_assert(equal(CaptureMode::global, CU_STREAM_CAPTURE_MODE_GLOBAL) &&
              equal(CaptureMode::thread_local_only, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) &&
              equal(CaptureMode::relaxed, CU_STREAM_CAPTURE_MODE_RELAXED));
static_assert(stream_non_blocking == CU_STREAM_NON_BLOCKING && event_disable_timing == CU_EVENT_DISABLE_TIMING);
static_assert(wait_value_geq == CU_STREAM_WAIT_VALUE_GEQ && write_value_default == CU_STREAM_WRITE_VALUE_DEFAULT);
static_assert(ipc_lazy_peer_access == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
static_assert(host_register_portable == CU_MEMHOSTREGISTER_PORTABLE);
static_assert(host_register_device_map == CU_MEMHOSTREGISTER_DEVICEMAP);
static_assert(handle_type_posix_descriptor == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
static_assert(location_device == CU_MEM_LOCATION_TYPE_DEVICE &&
              access_read_write == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);

static_assert(sizeof(Uuid) == sizeof(CUuuid) && sizeof(IpcHandle) == CU_IPC_HANDLE_SIZE);
static_assert(offsetof(MemoryLocation, type) == offsetof(CUmemLocation, type));
static_assert(offsetof(MemoryLocation, id) == offsetof(CUmemLocation, id));
static_assert(sizeof(AccessDescription) == sizeof(CUmemAccessDesc));
static_assert(offsetof(AccessDescription, location) == offsetof(CUmemAccessDesc, location));
static_assert(offsetof(AccessDescription, flags) == offsetof(CUmemAccessDesc, flags));

std::set<std::string> compared;

template <class Ours>
void has_symbol(const Functions& table, const Ours& member, const std::string& expected) {
  for_each_function(table, [&](const auto& function, const char* symbol) {
    if (static_cast<const void*>(&function) == static_cast<const void*>(&member)) CHECK_EQ(symbol, expected);
  });
  CHECK(compared.insert(expected).second);
}

}  // namespace

// cuda.h gives a name its newest version by a macro, which the second step of the expansion shows.
#define TEXT_OF(name) TEXT_OF_(name)
#define TEXT_OF_(name) #name
#define SAME(member, function)                                                         \
  static_assert(PassedAlike<decltype(Functions::member), decltype(&function)>::value); \
  has_symbol(table, table.member, TEXT_OF(function))

TEST("each function has the signature and the symbol of cuda.h") {
  const Functions table{};
  SAME(init, cuInit);
  SAME(driver_get_version, cuDriverGetVersion);
  SAME(get_error_name, cuGetErrorName);
  SAME(get_error_string, cuGetErrorString);
  SAME(device_get_count, cuDeviceGetCount);
  SAME(device_get, cuDeviceGet);
  SAME(device_get_name, cuDeviceGetName);
  SAME(device_get_uuid, cuDeviceGetUuid);
  SAME(device_get_attribute, cuDeviceGetAttribute);
  SAME(device_can_access_peer, cuDeviceCanAccessPeer);
  SAME(primary_context_retain, cuDevicePrimaryCtxRetain);
  SAME(primary_context_release, cuDevicePrimaryCtxRelease);
  SAME(context_push, cuCtxPushCurrent);
  SAME(context_pop, cuCtxPopCurrent);
  SAME(context_enable_peer_access, cuCtxEnablePeerAccess);
  SAME(memory_allocate, cuMemAlloc);
  SAME(memory_free, cuMemFree);
  SAME(pointer_get_attributes, cuPointerGetAttributes);
  SAME(pointer_get_attribute, cuPointerGetAttribute);
  SAME(ipc_get_memory_handle, cuIpcGetMemHandle);
  SAME(ipc_open_memory, cuIpcOpenMemHandle);
  SAME(ipc_close_memory, cuIpcCloseMemHandle);
  SAME(retain_allocation, cuMemRetainAllocationHandle);
  SAME(release_allocation, cuMemRelease);
  SAME(export_allocation, cuMemExportToShareableHandle);
  SAME(import_allocation, cuMemImportFromShareableHandle);
  SAME(reserve_addresses, cuMemAddressReserve);
  SAME(free_addresses, cuMemAddressFree);
  SAME(map_allocation, cuMemMap);
  SAME(unmap_addresses, cuMemUnmap);
  SAME(set_access, cuMemSetAccess);
  SAME(host_register, cuMemHostRegister);
  SAME(host_unregister, cuMemHostUnregister);
  SAME(host_get_device_pointer, cuMemHostGetDevicePointer);
  SAME(copy_to_host, cuMemcpyDtoHAsync);
  SAME(copy_to_device, cuMemcpyHtoDAsync);
  SAME(stream_create, cuStreamCreateWithPriority);
  SAME(stream_destroy, cuStreamDestroy);
  SAME(stream_query, cuStreamQuery);
  SAME(stream_wait_event, cuStreamWaitEvent);
  SAME(exchange_capture_mode, cuThreadExchangeStreamCaptureMode);
  SAME(stream_write_value, cuStreamWriteValue32);
  SAME(stream_wait_value, cuStreamWaitValue32);
  SAME(launch_host_function, cuLaunchHostFunc);
  SAME(event_create, cuEventCreate);
  SAME(event_destroy, cuEventDestroy);
  SAME(event_record, cuEventRecord);
  SAME(event_query, cuEventQuery);
  // An older version than the header's newest, which asks for more than ringred wants to know.
  static_assert(PassedAlike<decltype(Functions::stream_get_capture_info), PFN_cuStreamGetCaptureInfo_v11030>::value);
  has_symbol(table, table.stream_get_capture_info, "cuStreamGetCaptureInfo_v2");

  std::size_t functions = 0;
  for_each_function(table, [&](const auto&, const char*) { ++functions; });
  CHECK_EQ(functions, compared.size());
  CHECK_EQ(functions * sizeof(void*), sizeof table);  // the visitor forgets none
}
