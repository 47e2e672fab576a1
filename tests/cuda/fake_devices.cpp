// The fake driver: the driver itself, devices and contexts.
#include <cstring>

#include "tests/cuda/fake_call.h"

namespace ringred::check {
namespace {

Result init(unsigned) {
  const Call call("cuInit");
  if (call.fails()) return call.result();
  return here().visible.empty() ? Result::no_device : Result::success;
}

Result driver_get_version(int* version) {
  const Call call("cuDriverGetVersion");
  *version = 13000;
  return call.result();
}

Result get_error_name(Result result, const char** text) {
  static const std::map<Result, const char*> names{{Result::unknown, "CUDA_ERROR_UNKNOWN"},
                                                   {Result::no_device, "CUDA_ERROR_NO_DEVICE"},
                                                   {Result::map_failed, "CUDA_ERROR_MAP_FAILED"},
                                                   {Result::out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                   {Result::not_supported, "CUDA_ERROR_NOT_SUPPORTED"},
                                                   {Result::not_permitted, "CUDA_ERROR_NOT_PERMITTED"}};
  const auto found = names.find(result);
  *text = found == names.end() ? nullptr : found->second;
  return found == names.end() ? Result::invalid_value : Result::success;
}

Result get_error_string(Result, const char** text) {
  *text = "in the words of the driver";
  return Result::success;
}

Result device_get_count(int* count) {
  const Call call("cuDeviceGetCount");
  *count = static_cast<int>(here().visible.size());
  return call.result();
}

Result device_get(Device* device, int ordinal) {
  const Call call("cuDeviceGet");
  *device = ordinal;
  return call.result();
}

Result device_get_name(char* name, int length, Device) {
  const Call call("cuDeviceGetName");
  std::strncpy(name, "Fake GPU", static_cast<std::size_t>(length));
  return call.result();
}

Result device_get_uuid(Uuid* uuid, Device device) {
  const Call call("cuDeviceGetUuid_v2");
  *uuid = device_of(device).uuid;
  return call.result();
}

Result device_get_attribute(int* value, DeviceAttribute attribute, Device device) {
  const Call call("cuDeviceGetAttribute");
  const FakeDevice& facts = device_of(device);
  if (attribute == DeviceAttribute::ipc_supported && !facts.knows_ipc_attribute) return Result::invalid_value;
  switch (attribute) {
    case DeviceAttribute::compute_capability_major:
      *value = facts.capability / 10;
      break;
    case DeviceAttribute::compute_capability_minor:
      *value = facts.capability % 10;
      break;
    case DeviceAttribute::host_register_supported:
      *value = facts.host_register;
      break;
    case DeviceAttribute::virtual_memory_supported:
      *value = 1;
      break;
    case DeviceAttribute::posix_descriptor_supported:
      *value = facts.posix_descriptors;
      break;
    case DeviceAttribute::ipc_supported:
      *value = facts.legacy_ipc;
      break;
  }
  return call.result();
}

Result device_can_access_peer(int* can, Device device, Device peer) {
  const Call call("cuDeviceCanAccessPeer");
  const auto number = [](Device one) { return here().visible[static_cast<std::size_t>(one)]; };
  *can = here().machine.peers.contains({number(device), number(peer)});
  return call.result();
}

Result primary_context_retain(Context* context, Device device) {
  const Call call("cuDevicePrimaryCtxRetain");
  if (call.fails()) return call.result();
  ++here().context_references[static_cast<std::size_t>(device)];
  *context = here().contexts[static_cast<std::size_t>(device)].get();
  return Result::success;
}

Result primary_context_release(Device device) {
  const Call call("cuDevicePrimaryCtxRelease_v2");
  if (--here().context_references[static_cast<std::size_t>(device)] < 0)
    here().machine.note_mistake("a context was released once too often");
  return call.result();
}

Result context_push(Context context) {
  const Call call("cuCtxPushCurrent_v2");
  if (call.fails()) return call.result();
  this_thread().contexts.push_back(context);
  return Result::success;
}

Result context_pop(Context* context) {
  const Call call("cuCtxPopCurrent_v2");
  *context = current_context();
  this_thread().contexts.pop_back();
  return call.result();
}

Result context_enable_peer_access(Context peer, unsigned) {
  const Call call("cuCtxEnablePeerAccess");
  if (call.fails()) return call.result();
  const std::pair<int, int> pair{current_device(), here().visible[static_cast<std::size_t>(peer->ordinal)]};
  if (!here().machine.peers.contains(pair)) return Result::peer_access_unsupported;
  return here().enabled_peers.insert(pair).second ? Result::success : Result::peer_access_already_enabled;
}

}  // namespace

void add_device_functions(Functions& table) {
  table.init = init;
  table.driver_get_version = driver_get_version;
  table.get_error_name = get_error_name;
  table.get_error_string = get_error_string;
  table.device_get_count = device_get_count;
  table.device_get = device_get;
  table.device_get_name = device_get_name;
  table.device_get_uuid = device_get_uuid;
  table.device_get_attribute = device_get_attribute;
  table.device_can_access_peer = device_can_access_peer;
  table.primary_context_retain = primary_context_retain;
  table.primary_context_release = primary_context_release;
  table.context_push = context_push;
  table.context_pop = context_pop;
  table.context_enable_peer_access = context_enable_peer_access;
}

}  // namespace ringred::check
