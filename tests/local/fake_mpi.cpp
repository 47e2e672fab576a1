// An MPI library of one process, for tests of the MPI network: what is sent to any rank arrives here, from the rank
// that it was sent to. Built once for handles of 4 bytes and once for handles of 8, as the implementations have them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifndef RINGRED_FAKE_HANDLE
#error "RINGRED_FAKE_HANDLE is the type of a handle"
#endif

using Handle = RINGRED_FAKE_HANDLE;

namespace {

constexpr int success = 0, broken = 17, lost_rank = 99;

struct Message {
  std::vector<char> bytes;
  int peer, tag;
};

struct Request {
  bool sends = false, over = false;
  const void* data = nullptr;
  void* room = nullptr;
  int count = 0, peer = 0, tag = 0;
};

std::vector<Request> requests(1);  // 0 is the null handle
std::vector<Message> wire;

Handle handle_of(std::uintptr_t number) {
  Handle handle{};
  std::memcpy(&handle, &number, sizeof handle);  // little-endian, as this machine's
  return handle;
}

std::uintptr_t number_of(Handle handle) {
  std::uintptr_t number = 0;
  std::memcpy(&number, &handle, sizeof handle);
  return number;
}

// Sends leave when they are tested for, not before.
bool complete(Request& request) {
  if (request.over) return true;
  if (request.sends) {
    const char* first = static_cast<const char*>(request.data);
    wire.push_back({{first, first + request.count}, request.peer, request.tag});
    return request.over = true;
  }
  const auto found = std::find_if(wire.begin(), wire.end(), [&](const Message& message) {
    return message.peer == request.peer && message.tag == request.tag;
  });
  if (found == wire.end()) return false;
  std::memcpy(request.room, found->bytes.data(), found->bytes.size());
  wire.erase(found);
  return request.over = true;
}

int begin(Request request, Handle type, Handle communicator, Handle* handle) {
  if (number_of(type) != 11 || number_of(communicator) != 22 || request.peer == lost_rank) return broken;
  requests.push_back(request);
  *handle = handle_of(requests.size() - 1);
  return success;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int MPI_Isend(const void* data, int count, Handle type, int peer, int tag,
                                                     Handle communicator, Handle* request) {
  return begin({true, false, data, nullptr, count, peer, tag}, type, communicator, request);
}

__attribute__((visibility("default"))) int MPI_Irecv(void* room, int count, Handle type, int peer, int tag,
                                                     Handle communicator, Handle* request) {
  return begin({false, false, nullptr, room, count, peer, tag}, type, communicator, request);
}

__attribute__((visibility("default"))) int MPI_Testsome(int count, Handle* handles, int* completed, int* indices,
                                                        void*) {
  *completed = 0;
  for (int i = 0; i < count; ++i)
    if (number_of(handles[i]) != 0 && complete(requests[number_of(handles[i])])) {
      handles[i] = handle_of(0);
      indices[(*completed)++] = i;
    }
  return success;
}

__attribute__((visibility("default"))) int MPI_Cancel(Handle* request) {
  requests[number_of(*request)].over = true;
  return success;
}

__attribute__((visibility("default"))) int MPI_Error_string(int error, char* text, int* length) {
  std::strcpy(text, error == broken ? "the wire is broken" : "?");
  *length = static_cast<int>(std::strlen(text));
  return success;
}

__attribute__((visibility("default"))) int MPI_Finalized(int* flag) {
  *flag = 0;
  return success;
}
}
