// The functions of libcuda.so.1 that ringred calls, as a table: filled from the library at run time, or by a test with
// functions of its own.
//
// Invariant: a symbol names one version of a function for good ("_v2"), so the table needs no version numbers. Symbols
// are those of the newest version in CUDA 11.7, whose signatures are listed here.
#pragma once

#include "csrc/cuda/abi.h"

namespace ringred::cuda {

struct Functions {
  Result (*init)(unsigned flags);
  Result (*driver_get_version)(int* version);
  Result (*get_error_name)(Result, const char** text);
  Result (*get_error_string)(Result, const char** text);

  Result (*device_get_count)(int* count);
  Result (*device_get)(Device*, int ordinal);
  Result (*device_get_name)(char* name, int length, Device);
  Result (*device_get_uuid)(Uuid*, Device);
  Result (*device_get_attribute)(int* value, DeviceAttribute, Device);
  Result (*device_can_access_peer)(int* can, Device, Device peer);
  Result (*primary_context_retain)(Context*, Device);
  Result (*primary_context_release)(Device);
  Result (*context_push)(Context);
  Result (*context_pop)(Context*);
  Result (*context_enable_peer_access)(Context peer, unsigned flags);

  Result (*memory_allocate)(DevicePointer*, std::size_t bytes);
  Result (*memory_free)(DevicePointer);
  Result (*pointer_get_attributes)(unsigned count, PointerAttribute*, void** values, DevicePointer);
  Result (*pointer_get_attribute)(void* value, PointerAttribute, DevicePointer);
  Result (*ipc_get_memory_handle)(IpcHandle*, DevicePointer base);
  Result (*ipc_open_memory)(DevicePointer*, IpcHandle, unsigned flags);
  Result (*ipc_close_memory)(DevicePointer);
  Result (*retain_allocation)(AllocationHandle*, void* address);
  Result (*release_allocation)(AllocationHandle);
  Result (*export_allocation)(void* descriptor, AllocationHandle, unsigned handle_type, unsigned long long flags);
  Result (*import_allocation)(AllocationHandle*, void* descriptor, unsigned handle_type);
  Result (*reserve_addresses)(DevicePointer*, std::size_t bytes, std::size_t alignment, DevicePointer wish,
                              unsigned long long flags);
  Result (*free_addresses)(DevicePointer, std::size_t bytes);
  Result (*map_allocation)(DevicePointer, std::size_t bytes, std::size_t offset, AllocationHandle,
                           unsigned long long flags);
  Result (*unmap_addresses)(DevicePointer, std::size_t bytes);
  Result (*set_access)(DevicePointer, std::size_t bytes, const AccessDescription*, std::size_t count);
  Result (*host_register)(void*, std::size_t bytes, unsigned flags);
  Result (*host_unregister)(void*);
  Result (*host_get_device_pointer)(DevicePointer*, void*, unsigned flags);

  Result (*copy_to_host)(void* to, DevicePointer from, std::size_t bytes, Stream);
  Result (*copy_to_device)(DevicePointer to, const void* from, std::size_t bytes, Stream);
  Result (*stream_create)(Stream*, unsigned flags, int priority);
  Result (*stream_destroy)(Stream);
  Result (*stream_query)(Stream);
  Result (*stream_wait_event)(Stream, Event, unsigned flags);
  Result (*stream_get_capture_info)(Stream, CaptureStatus*, std::uint64_t* id, CUgraph_st**, CUgraphNode_st* const**,
                                    std::size_t* dependencies);
  Result (*exchange_capture_mode)(CaptureMode*);
  Result (*stream_write_value)(Stream, DevicePointer, std::uint32_t value, unsigned flags);
  Result (*stream_wait_value)(Stream, DevicePointer, std::uint32_t value, unsigned flags);
  Result (*launch_host_function)(Stream, HostFunction, void* data);
  Result (*event_create)(Event*, unsigned flags);
  Result (*event_destroy)(Event);
  Result (*event_record)(Event, Stream);
  Result (*event_query)(Event);
};

// visit(function, symbol) for each function of a table.
template <class Table, class Visit>
void for_each_function(Table& table, Visit&& visit) {
  visit(table.init, "cuInit");
  visit(table.driver_get_version, "cuDriverGetVersion");
  visit(table.get_error_name, "cuGetErrorName");
  visit(table.get_error_string, "cuGetErrorString");
  visit(table.device_get_count, "cuDeviceGetCount");
  visit(table.device_get, "cuDeviceGet");
  visit(table.device_get_name, "cuDeviceGetName");
  visit(table.device_get_uuid, "cuDeviceGetUuid_v2");
  visit(table.device_get_attribute, "cuDeviceGetAttribute");
  visit(table.device_can_access_peer, "cuDeviceCanAccessPeer");
  visit(table.primary_context_retain, "cuDevicePrimaryCtxRetain");
  visit(table.primary_context_release, "cuDevicePrimaryCtxRelease_v2");
  visit(table.context_push, "cuCtxPushCurrent_v2");
  visit(table.context_pop, "cuCtxPopCurrent_v2");
  visit(table.context_enable_peer_access, "cuCtxEnablePeerAccess");
  visit(table.memory_allocate, "cuMemAlloc_v2");
  visit(table.memory_free, "cuMemFree_v2");
  visit(table.pointer_get_attributes, "cuPointerGetAttributes");
  visit(table.pointer_get_attribute, "cuPointerGetAttribute");
  visit(table.ipc_get_memory_handle, "cuIpcGetMemHandle");
  visit(table.ipc_open_memory, "cuIpcOpenMemHandle_v2");
  visit(table.ipc_close_memory, "cuIpcCloseMemHandle");
  visit(table.retain_allocation, "cuMemRetainAllocationHandle");
  visit(table.release_allocation, "cuMemRelease");
  visit(table.export_allocation, "cuMemExportToShareableHandle");
  visit(table.import_allocation, "cuMemImportFromShareableHandle");
  visit(table.reserve_addresses, "cuMemAddressReserve");
  visit(table.free_addresses, "cuMemAddressFree");
  visit(table.map_allocation, "cuMemMap");
  visit(table.unmap_addresses, "cuMemUnmap");
  visit(table.set_access, "cuMemSetAccess");
  visit(table.host_register, "cuMemHostRegister_v2");
  visit(table.host_unregister, "cuMemHostUnregister");
  visit(table.host_get_device_pointer, "cuMemHostGetDevicePointer_v2");
  visit(table.copy_to_host, "cuMemcpyDtoHAsync_v2");
  visit(table.copy_to_device, "cuMemcpyHtoDAsync_v2");
  visit(table.stream_create, "cuStreamCreateWithPriority");
  visit(table.stream_destroy, "cuStreamDestroy_v2");
  visit(table.stream_query, "cuStreamQuery");
  visit(table.stream_wait_event, "cuStreamWaitEvent");
  visit(table.stream_get_capture_info, "cuStreamGetCaptureInfo_v2");
  visit(table.exchange_capture_mode, "cuThreadExchangeStreamCaptureMode");
  visit(table.stream_write_value, "cuStreamWriteValue32_v2");
  visit(table.stream_wait_value, "cuStreamWaitValue32_v2");
  visit(table.launch_host_function, "cuLaunchHostFunc");
  visit(table.event_create, "cuEventCreate");
  visit(table.event_destroy, "cuEventDestroy_v2");
  visit(table.event_record, "cuEventRecord");
  visit(table.event_query, "cuEventQuery");
}

}  // namespace ringred::cuda
