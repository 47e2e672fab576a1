#include "csrc/memory/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "csrc/base/error.h"
#include "csrc/memory/limits.h"

namespace ringred {
namespace {

constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// From Linux 5.14; older headers lack the name.
constexpr int populate_write = 23;

std::string reason() {
  return std::string(": ") + std::strerror(errno) + ".";
}

std::byte* map_aligned(int descriptor, std::size_t bytes) {
  std::byte* addresses = reserve_addresses(bytes, 0);
  if (addresses == nullptr) return nullptr;
  void* mapped = mmap(addresses, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor, 0);
  if (mapped == MAP_FAILED) {
    munmap(addresses, bytes);
    return nullptr;
  }
  madvise(mapped, bytes,
          MADV_DONTDUMP);  // a core file would otherwise hold every rank's gradients in every rank's dump
  return static_cast<std::byte*>(mapped);
}

}  // namespace

// Huge pages need the mapping and the file to have the same alignment, so a larger range is reserved and trimmed.
std::byte* reserve_addresses(std::size_t bytes, std::size_t phase) {
  void* reserved = mmap(nullptr, bytes + huge_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return nullptr;
  auto* const start = static_cast<std::byte*>(reserved);
  const std::size_t before = (phase % huge_page - reinterpret_cast<std::uintptr_t>(start)) % huge_page;
  if (before > 0) munmap(start, before);
  munmap(start + before + bytes, huge_page - before);
  return start + before;
}

Segment Segment::create(std::size_t bytes, bool huge_pages) {
  const int descriptor = memfd_create("ringred", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0) fail_system("A shared segment needs memfd_create, which failed" + reason());
  if (ftruncate(descriptor, static_cast<off_t>(bytes)) != 0 || fcntl(descriptor, F_ADD_SEALS, seals) != 0) {
    const std::string why = reason();
    close(descriptor);
    fail_system("A shared segment of " + in_words(bytes) + " could not be sized" + why +
                " Set RINGRED_ARENA_BYTES to a smaller range, or raise 'ulimit -f'.");
  }
  std::byte* base = map_aligned(descriptor, bytes);
  if (base == nullptr) {
    const std::string why = reason();
    close(descriptor);
    fail_system("A shared segment of " + in_words(bytes) + " could not be mapped" + why +
                " Set RINGRED_ARENA_BYTES to a smaller range, or raise 'ulimit -v'.");
  }
  if (huge_pages) madvise(base, bytes, MADV_HUGEPAGE);  // advice: without it pages are small, and all works
  return Segment(base, bytes, descriptor);
}

Segment Segment::map(int descriptor) {
  struct stat status{};
  const int sealed = fcntl(descriptor, F_GET_SEALS);
  if (sealed < 0 || (sealed & seals) != seals || fstat(descriptor, &status) != 0)
    fail_system(
        "A peer's segment must be a sealed memfd: the descriptor received is none. Do all ranks run the same ringred?");
  const auto bytes = static_cast<std::size_t>(status.st_size);
  std::byte* base = map_aligned(descriptor, bytes);
  if (base == nullptr)
    fail_system("A peer's segment of " + in_words(bytes) + " could not be mapped" + reason() +
                " Set RINGRED_ARENA_BYTES to a smaller range on all ranks, or raise 'ulimit -v'.");
  return Segment(base, bytes, -1);
}

Segment::Segment(Segment&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      size_(other.size_),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

Segment::~Segment() {
  if (base_ != nullptr) munmap(base_, size_);
  if (descriptor_ >= 0) close(descriptor_);
}

void Segment::commit(std::size_t offset, std::size_t bytes) {
  check_memory_available(bytes);
  if (madvise(base_ + offset, bytes, populate_write) == 0) return;
  // Before Linux 5.14: the file system makes the pages, small ones, and the first write maps them.
  if (errno == EINVAL && fallocate(descriptor_, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0) return;
  const std::string why = reason();
  release(offset, bytes);
  fail_system("The arena needs " + in_words(bytes) + " of shared memory, and the system refused" + why +
              " Free memory, use smaller arrays or fewer ranks, or raise the container's memory limit.");
}

void Segment::release(std::size_t offset, std::size_t bytes) {
  fallocate(descriptor_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
            static_cast<off_t>(bytes));
}

}  // namespace ringred
