// A library that gets its memory like torch's: the pool is put between it and the C library.
#include <cstddef>
#include <cstdlib>

extern "C" {

__attribute__((visibility("default"))) void* sample_allocate(std::size_t bytes) {
  void* data = nullptr;
  return posix_memalign(&data, 64, bytes) == 0 ? data : nullptr;
}

__attribute__((visibility("default"))) void sample_free(void* data) {
  std::free(data);
}
}
