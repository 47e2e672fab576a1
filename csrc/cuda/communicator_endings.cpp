// How calls end, and the communicator: waiting, breaking off, leaving.
#include <algorithm>
#include <thread>

#include "csrc/base/error.h"
#include "csrc/base/text.h"
#include "csrc/cuda/communicator.h"

namespace ringred::cuda {
namespace {

using Clock = std::chrono::steady_clock;

// How long kernels may take to end after their report has been raised: some looks at it.
constexpr auto run_out_time = std::chrono::seconds(5);
constexpr auto question_interval = std::chrono::microseconds(50);

using ReportWord = std::atomic_ref<std::uint64_t>;

}  // namespace

bool DeviceCommunicator::is_idle() const {
  const Driver& driver = *setup_.gpu.driver;
  return (!order_ || has_ended(driver, order_->stream())) && (!direct_ || has_ended(driver, direct_->copies().get())) &&
         (!staging_ || staging_->is_idle());
}

bool DeviceCommunicator::is_reported() const {
  return ReportWord(block(rank()).report.taken).load(std::memory_order_acquire) >= Report::there;
}

void DeviceCommunicator::throw_if_broken() const {
  for (int peer = 0; peer < size(); ++peer) {
    const HostBlock& theirs = block(peer);
    if (theirs.state.load(std::memory_order_acquire) != HostBlock::broken) continue;
    const bool mismatch = static_cast<ErrorKind>(theirs.kind.load()) == ErrorKind::mismatch;
    throw Error(mismatch ? ErrorKind::mismatch : ErrorKind::peer_lost,
                "rank " + std::to_string(peer) + " broke off: " + theirs.reason + "." + restart_remedy);
  }
}

// Also a rank that has left before this call.
void DeviceCommunicator::throw_if_different() {
  const std::string difference = announcements_->difference();
  if (!difference.empty()) throw Error(ErrorKind::mismatch, difference + "." + restart_remedy);
  for (int peer = 0; peer < size(); ++peer)
    if (block(peer).state.load(std::memory_order_acquire) == HostBlock::left &&
        announcements_->calls_of(peer) < announcements_->calls())
      throw Error(ErrorKind::peer_lost, "rank " + std::to_string(peer) + " has left after " +
                                            std::to_string(announcements_->calls_of(peer)) + " calls, and rank " +
                                            std::to_string(rank()) + " is in call " +
                                            std::to_string(announcements_->calls()) + "." + restart_remedy);
}

// Where ranks differ, kernels wait for what does not come: the difference says more.
void DeviceCommunicator::throw_if_reported() {
  if (!is_reported()) return;
  throw_if_different();
  throw_if_broken();
  throw overdue(lacking(), setup_.wait.settings.timeout_seconds);
}

void DeviceCommunicator::look() {
  throw_if_different();
  throw_if_broken();
  if (setup_.look_around) setup_.look_around();
}

std::string DeviceCommunicator::lacking() const {
  const std::uint64_t calls = announcements_->calls();
  const std::string call = " in call " + std::to_string(calls) + ", " + last_.text();
  std::string text = "rank " + std::to_string(rank()) + " waits for its device" + call + ", which all ranks have made";
  for (int peer = 0; peer < size(); ++peer)
    if (announcements_->calls_of(peer) < calls) {
      text = "rank " + std::to_string(rank()) + " waits for rank " + std::to_string(peer) + call + ": it has made " +
             std::to_string(announcements_->calls_of(peer)) + " calls";
      break;
    }
  if (!is_reported()) return text;
  const std::string report = describe(block(rank()).report);
  return report.empty() ? text : text + "; " + report;
}

void DeviceCommunicator::await() {
  require_open();
  or_break_off([&] {
    throw_if_broken();
    if (staging_) explained([&] { staging_->await(); });
    if (done_)
      setup_.wait.until([&] { return is_reported() || is_over(*setup_.gpu.driver, done_->get()); }, [&] { look(); },
                        [&] { return lacking(); });
    throw_if_reported();
    throw_if_different();
  });
}

void DeviceCommunicator::check() {
  require_open();
  or_break_off([&] {
    throw_if_broken();
    throw_if_reported();
    throw_if_different();
    if (staging_) explained([&] { staging_->check(); });
    if (!done_ || is_over(*setup_.gpu.driver, done_->get())) return;
    look();
    const double limit = setup_.wait.settings.timeout_seconds;
    if (limit > 0 && Clock::now() - began_ > std::chrono::duration<double>(limit)) throw overdue(lacking(), limit);
  });
}

// Staging knows less of what broke a rank than that rank's host block says.
void DeviceCommunicator::explained(FunctionRef<void()> staged) {
  try {
    staged();
  } catch (const Error&) {
    throw_if_different();
    throw_if_broken();
    throw;
  }
}

void DeviceCommunicator::or_break_off(FunctionRef<void()> work) {
  try {
    work();
  } catch (const Error& error) {
    break_off(error.kind(), error.what());
    throw;
  } catch (const std::exception& error) {
    break_off(ErrorKind::system, error.what());
    throw;
  }
}

// Only the first reason is said: a rank that ends because of another one has nothing to add. But its own work has to
// run out, too, whoever broke off.
void DeviceCommunicator::break_off(ErrorKind kind, const std::string& reason) {
  const auto is_broken = [](std::byte* start) {
    return reinterpret_cast<HostBlock*>(start)->state.load(std::memory_order_acquire) == HostBlock::broken;
  };
  HostBlock& mine = block(rank());
  if (std::none_of(setup_.host_blocks.begin(), setup_.host_blocks.end(), is_broken)) {
    const std::string_view text = std::string_view(reason).substr(0, reason.find(restart_remedy));
    store_text(mine.reason, text.substr(0, text.find_last_not_of('.') + 1));
    mine.kind.store(static_cast<std::uint32_t>(kind));
    mine.state.store(HostBlock::broken, std::memory_order_release);
  }
  for (int peer = 0; peer < size(); ++peer) {
    std::uint64_t none = 0;
    ReportWord(block(peer).report.taken).compare_exchange_strong(none, Report::raised_by_host);
  }
  if (staging_) staging_->break_off("broke off: " + reason);
  run_out();
}

bool DeviceCommunicator::run_out() {
  for (const auto deadline = Clock::now() + run_out_time; !is_idle(); std::this_thread::sleep_for(question_interval))
    if (Clock::now() > deadline) return false;
  return true;
}

// 1 to 3 of communicator.h; returns whether memory may be freed.
bool DeviceCommunicator::leave() {
  const auto all_left = [&] {
    throw_if_broken();
    for (int peer = 0; peer < size(); ++peer)
      if (block(peer).state.load(std::memory_order_acquire) != HostBlock::left) return false;
    return true;
  };
  const std::string me = "rank " + std::to_string(rank()) + " waits for ";
  const auto look_around = [&] {
    if (setup_.look_around) setup_.look_around();
  };
  setup_.wait.until([&] { return is_idle(); }, [&] { look(); }, [&] { return me + "its device at the end"; });  // 1
  throw_if_reported();
  staging_.reset();
  mappings_.close_all();  // 2
  if (!met_) return true;
  block(rank()).state.store(HostBlock::left, std::memory_order_release);
  setup_.wait.until(all_left, look_around, [&] { return me + "all ranks to end their communicators"; });  // 3
  return true;
}

// What is left. Memory that peers may have opened is not freed by its owner's destructor; that of a rank alone is.
void DeviceCommunicator::let_go() {
  done_.reset();
  const bool idle = run_out();
  if (!idle && registered_) registered_->abandon();
  staging_.reset();
  if (!idle) static_cast<void>(direct_.release());  // freeing its tables would wait for the device
  direct_.reset();
  for (SymmetricMemory& memory : memories_) {
    memory.close();
    if (!idle) memory.abandon();
    if (idle && !met_) memory.free();
  }
  if (idle) mappings_.close_all();
}

void DeviceCommunicator::end() {
  if (ended_) return;
  ended_ = true;
  if (!announcements_) return;  // nothing is open
  try {
    or_break_off([&] {
      throw_if_broken();
      if (leave())
        for (SymmetricMemory& memory : memories_) memory.free();  // 4
    });
  } catch (...) {
    let_go();
    throw;
  }
  let_go();
}

void DeviceCommunicator::abandon(const std::string& reason) {
  if (ended_) return;
  ended_ = true;
  if (!announcements_) return;
  const bool is_over = run_out();
  if (!is_over) break_off(ErrorKind::peer_lost, reason);
  let_go();
  auto present = static_cast<std::uint32_t>(HostBlock::present);
  if (is_over) block(rank()).state.compare_exchange_strong(present, HostBlock::left);  // its mappings are closed
}

DeviceCommunicator::~DeviceCommunicator() {
  try {
    end();
  } catch (const std::exception&) {  // nobody is left to tell: peers find it in the host block
  }
}

}  // namespace ringred::cuda
