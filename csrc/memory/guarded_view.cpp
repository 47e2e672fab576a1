#include "csrc/memory/guarded_view.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "csrc/base/error.h"
#include "csrc/base/round.h"
#include "csrc/memory/limits.h"
#include "csrc/memory/segment.h"

namespace ringred {
namespace {

using Action = struct sigaction;

// A view as the signal handler sees it; never changed.
struct Guard {
  Guard(const std::byte* first, std::size_t length, const std::byte* origin, int rank, std::vector<NamedRange> ranges)
      : begin(first),
        end(first + length),
        data(origin),
        opening("ringred: rank " + std::to_string(rank) + ": something wrote to "),
        names(std::move(ranges)) {}

  const std::byte *begin, *end;  // its pages
  const std::byte* data;
  std::string opening;
  std::vector<NamedRange> names;  // ascending
};

constexpr std::string_view unnamed = "the memory of the parameters", named = "the parameter '", name_end = "'";
constexpr std::string_view closing =
    " outside of step(). With share_parameters=True all ranks of this machine read the same memory, so parameters are "
    "read-only outside of step(). Write inside \"with optimizer.writable():\", or build the optimizer with "
    "share_parameters=False.\n";

}  // namespace

// Slots are never freed but used again, so there are as many as there were views at one time.
struct GuardSlot {
  std::atomic<const Guard*> guard{nullptr};
  bool taken = true;  // guarded by State::mutex
  GuardSlot* next = nullptr;
};

namespace {

// What the handler reads.
std::atomic<GuardSlot*> slots{nullptr};
std::atomic<int> readers{0};                       // handlers that hold a guard
std::atomic<const Action*> found_before{nullptr};  // the action that ours took the place of
std::atomic<pid_t> speaker{0};                     // the thread that told of its write
std::atomic<bool> given_up{false};                 // the other action is back, for good: the process is about to end

// What views change. Never destroyed: a view may be the last thing that a process destroys. No lock is held at a fork
// by a thread that holds Python's GIL, and others do not fork here.
struct State {
  std::mutex mutex;
  std::vector<std::unique_ptr<const Guard>> retired;  // that a handler may hold
  std::vector<std::unique_ptr<const Action>> found;   // one for each time that ours was installed; kept
};
State& state() {
  static State& one = *new State;
  return one;
}

// A handler that comes after the slot has the new guard finds that one, so without handlers nobody holds an old one.
void exchange_guard(GuardSlot& slot, std::unique_ptr<const Guard> guard) {
  state().retired.emplace_back(slot.guard.exchange(guard.release()));
  if (readers.load() == 0) state().retired.clear();
}

// The handler. From here to install() all is async-signal-safe.

iovec part(std::string_view text) {
  return {const_cast<char*>(text.data()), text.size()};
}

void tell(const Guard& guard, const std::byte* address) {
  const std::byte* data = guard.data;
  const auto after = std::upper_bound(
      guard.names.begin(), guard.names.end(), address,
      [data](const std::byte* wanted, const NamedRange& range) { return wanted < data + range.begin; });
  const bool has_name = after != guard.names.begin() && address < data + std::prev(after)->end;
  const std::array<iovec, 5> parts = {part(guard.opening), part(has_name ? named : unnamed),
                                      part(has_name ? std::string_view(std::prev(after)->name) : ""),
                                      part(has_name ? name_end : ""), part(closing)};
  if (writev(STDERR_FILENO, parts.data(), static_cast<int>(parts.size())) < 0) return;  // nobody to tell
}

void sleep_for(long milliseconds) {
  const timespec time{milliseconds / 1000, milliseconds % 1000 * 1'000'000};
  nanosleep(&time, nullptr);
}

// A large write is shared among threads, and all of them fault. The first one speaks and ends the process; the others
// wait for that. In a process that lives on, because its own handler made the best of it, they speak later.
void take_turn() {
  const auto self = static_cast<pid_t>(syscall(SYS_gettid));
  for (int round = 0; round < 40; ++round) {
    pid_t none = 0;
    if (speaker.compare_exchange_strong(none, self) || none == self) return;
    sleep_for(50);
  }
}

bool tell_if_guarded(const std::byte* address) {
  readers.fetch_add(1);
  bool found = false;
  for (GuardSlot* slot = slots.load(); slot != nullptr && !found; slot = slot->next) {
    const Guard* guard = slot->guard.load();
    found = guard != nullptr && guard->begin <= address && address < guard->end;
    if (!found) continue;
    take_turn();
    if (!given_up.load()) tell(*guard, address);
  }
  readers.fetch_sub(1);
  return found;
}

// Where the thread's last fault was, if it was a write. The system keeps that when a signal comes without an address.
const std::byte* last_written([[maybe_unused]] const void* context) {
  std::uintptr_t address = 0;
#if defined(__x86_64__)
  const auto& registers = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs;
  constexpr int page_fault = 14, is_write = 2;
  if (registers[REG_TRAPNO] == page_fault && (registers[REG_ERR] & is_write) != 0)
    address = static_cast<std::uintptr_t>(registers[REG_CR2]);
#elif defined(__aarch64__)
  address = static_cast<const ucontext_t*>(context)->uc_mcontext.fault_address;
#endif
  return reinterpret_cast<const std::byte*>(address);
}

// Where this thread wrote to memory that is read-only; or null. Of a signal that the process sent itself, its last
// fault counts: a handler that was called before us sends it when it is done.
const std::byte* written(const siginfo_t& information, const void* context) {
  if (information.si_code == SEGV_ACCERR) return static_cast<const std::byte*>(information.si_addr);
  if (information.si_code == SI_TKILL && information.si_pid == getpid()) return last_written(context);
  return nullptr;
}

// A function is called, and ours stays: some that were there before, such as a virtual machine's, use faults as a
// matter of course. Otherwise the action takes our place, and the fault or signal comes again.
void call_previous(int signal, siginfo_t* information, void* context, bool told) {
  const Action& previous = *found_before.load();
  const bool sent = information->si_code <= 0;
  // Time for the threads that share a large write to fault, too, and wait here: the next fault of one would end the
  // process in the middle of faulthandler's stacks. Or for another thread to end the stacks that it writes already.
  if (told && !sent) sleep_for(200);
  const bool is_function = previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN;
  if (is_function && (previous.sa_flags & static_cast<int>(SA_RESETHAND)) == 0) {
    if (previous.sa_flags & SA_SIGINFO)
      previous.sa_sigaction(signal, information, context);
    else
      previous.sa_handler(signal);
    return;
  }
  if (sent && previous.sa_handler == SIG_IGN) return;
  given_up.store(true);
  sigaction(signal, &previous, nullptr);
  if (sent) raise(signal);  // it comes when this handler returns
}

void on_fault(int signal, siginfo_t* information, void* context) {
  const int error = errno;
  const std::byte* address = written(*information, context);
  const bool told = address != nullptr && tell_if_guarded(address);
  call_previous(signal, information, context, told);
  errno = error;
}

// Puts the handler in place, and back where somebody removed it. One that was put over ours calls ours: if ours went
// over that one in turn, they would call each other for ever.
void install() {
  if (given_up.load() || speaker.load() != 0) return;  // the process is about to end
  const std::lock_guard lock(state().mutex);
  Action current{};
  sigaction(SIGSEGV, nullptr, &current);
  if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_fault) return;
  const Action* before = found_before.load();
  const bool is_default = !(current.sa_flags & SA_SIGINFO) && current.sa_handler == SIG_DFL;
  const bool same = before != nullptr && current.sa_handler == before->sa_handler;  // a union with sa_sigaction
  if (before != nullptr && !is_default && !same) return;
  state().found.push_back(std::make_unique<const Action>(current));
  found_before.store(state().found.back().get());
  Action ours{};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGSEGV, &ours, nullptr);
  if (given_up.load()) sigaction(SIGSEGV, &current, nullptr);  // meanwhile: it must not come back
}

GuardSlot* take_slot(std::unique_ptr<const Guard> guard) {
  const std::lock_guard lock(state().mutex);
  GuardSlot* slot = slots.load();
  while (slot != nullptr && slot->taken) slot = slot->next;
  if (slot == nullptr) {
    slot = new GuardSlot;
    slot->next = slots.load();
    slots.store(slot);
  }
  slot->taken = true;
  exchange_guard(*slot, std::move(guard));
  return slot;
}

std::string reason() {
  return std::string(": ") + std::strerror(errno) + ".";
}

}  // namespace

GuardedView::GuardedView(const std::byte* original, std::size_t bytes, int rank) : bytes_(bytes), rank_(rank) {
  if (bytes == 0) fail_usage("A guarded view has at least one byte.");
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t inside = reinterpret_cast<std::uintptr_t>(original) % page;
  const std::byte* first = original - inside;
  length_ = round_up(inside + bytes, page);
  pages_ = reserve_addresses(length_, reinterpret_cast<std::uintptr_t>(first));
  // An old length of 0 keeps the old mapping: this one is a second.
  if (pages_ == nullptr ||
      mremap(const_cast<std::byte*>(first), 0, length_, MREMAP_MAYMOVE | MREMAP_FIXED, pages_) == MAP_FAILED) {
    const std::string why = reason();
    if (pages_ != nullptr) munmap(pages_, length_);
    fail_system("A second view of " + in_words(bytes) + " of shared memory could not be mapped" + why +
                " Raise 'ulimit -v' if it is limited, or build the optimizer with share_parameters=False.");
  }
  data_ = pages_ + inside;
  try {
    set_access(PROT_READ);
    install();
    slot_ = take_slot(std::make_unique<const Guard>(pages_, length_, data_, rank_, std::vector<NamedRange>{}));
  } catch (...) {
    munmap(pages_, length_);
    throw;
  }
}

GuardedView::~GuardedView() {
  {
    const std::lock_guard lock(state().mutex);
    exchange_guard(*slot_, nullptr);
    slot_->taken = false;
  }
  munmap(pages_, length_);  // only now may the addresses be another's
}

void GuardedView::protect() {
  install();
  set_access(PROT_READ);
}

void GuardedView::unprotect() {
  install();
  set_access(PROT_READ | PROT_WRITE);
}

void GuardedView::set_access(int access) {
  if (mprotect(pages_, length_, access) != 0)
    fail_system("The access to " + in_words(bytes_) + " of shared memory could not be changed" + reason());
}

void GuardedView::name_ranges(std::vector<NamedRange> ranges) {
  std::erase_if(ranges, [](const NamedRange& range) { return range.begin == range.end; });
  std::sort(ranges.begin(), ranges.end(),
            [](const NamedRange& left, const NamedRange& right) { return left.begin < right.begin; });
  std::size_t end = 0;
  for (const NamedRange& range : ranges) {
    if (range.begin > range.end || range.end > bytes_ || range.begin < end)
      fail_usage("Ranges of a guarded view lie in its " + std::to_string(bytes_) + " bytes and do not overlap: '" +
                 range.name + "' is [" + std::to_string(range.begin) + ", " + std::to_string(range.end) + ").");
    end = range.end;
  }
  auto guard = std::make_unique<const Guard>(pages_, length_, data_, rank_, std::move(ranges));
  const std::lock_guard lock(state().mutex);
  exchange_guard(*slot_, std::move(guard));
}

}  // namespace ringred
