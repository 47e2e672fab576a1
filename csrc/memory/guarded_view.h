// A second view of memory that ranks share, read-only except between unprotect() and protect(). A stray write through
// it faults; the process ends as it would anyway, but first stderr names what was written to.
//
// The view is a mapping of its own of the same pages: what is written through others shows here at once, and it stays
// when they are unmapped. The pages stay the owner's to give back; a view of pages given back reads zero. A forked
// child has the view as its parent had it.
//
// Limits: a system call that is told to write here, such as read(2), does not fault; it fails with EFAULT.
//
// Other handlers of SIGSEGV: ours is installed with the first view and stays. It calls the one that it found, whatever
// the fault, so that one works as before; if that is the default, the default is put back, and the process ends.
// Python's faulthandler:
//   - enabled before the first view: our text comes first, then its stacks.
//   - enabled after it: its handler is called first. It writes the stacks, puts ours back and raises the signal once
//     more, without an address; ours takes the address from what the system keeps of the thread's last fault, and the
//     text comes after the stacks.
//   - disabled after it, if it was enabled before: it puts back what it had found, and ours is gone until the next
//     view, protect() or unprotect().
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace ringred {

// A part of a view, [begin, end) in bytes from its data().
struct NamedRange {
  std::size_t begin, end;
  std::string name;
};

// Where the signal handler finds a view.
struct GuardSlot;

class GuardedView {
 public:
  // Of [original, original + bytes), which is part of one shared mapping, such as a segment; committed by its owner.
  // Read-only from the start. `rank` is this process's, for the text. Throws a usage or a system error.
  GuardedView(const std::byte* original, std::size_t bytes, int rank);
  GuardedView(const GuardedView&) = delete;
  GuardedView& operator=(const GuardedView&) = delete;
  ~GuardedView();

  std::byte* data() const { return data_; }
  std::size_t size() const { return bytes_; }

  // For all threads of this process, at once. Each is one system call.
  void protect();
  void unprotect();

  // What the text says of an address: the range that holds it. Ranges are in any order and do not overlap; they replace
  // those of an earlier call.
  void name_ranges(std::vector<NamedRange> ranges);

 private:
  void set_access(int access);

  std::byte* pages_ = nullptr;  // the mapping: the whole pages around data_
  std::size_t length_ = 0;
  std::byte* data_ = nullptr;
  const std::size_t bytes_;
  const int rank_;
  GuardSlot* slot_ = nullptr;
};

}  // namespace ringred
