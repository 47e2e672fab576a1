#include "csrc/base/wait.h"

#include <sched.h>

#include <algorithm>

#include "csrc/base/futex.h"
#include "csrc/base/lifeline.h"
#include "csrc/base/text.h"

namespace ringred {
namespace {

using Clock = std::chrono::steady_clock;

// How long to yield before sleeping. With more ranks than cores a turn of the others takes tens of microseconds, and
// a futex wake-up as much; an idle rank has to be asleep within a millisecond.
constexpr auto yield_time = std::chrono::microseconds(300);

// How long one sleep lasts at most: the interval at which signals and the peers' lives are looked at.
constexpr std::int64_t slice_nanoseconds = 100'000'000;

// Only the owner sleeps on a doorbell, so a wake-up need not choose.
constexpr std::uint32_t all_bits = ~std::uint32_t{0};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

// One long wait, from the moment it is known to be long. The rungs: a short wait with all locks kept, spinning if there
// is a core for each rank, else yielding to a peer that has none; then, with the hooks told, yield and sleep.
class Waiter::LongWait {
 public:
  LongWait(Waiter& waiter, int peer, FunctionRef<bool()> ready, FunctionRef<std::string()> sentence)
      : waiter_(waiter), peer_(peer), ready_(ready), sentence_(sentence), start_(Clock::now()) {}

  void run() {
    if (waiter_.settings_.cores_suffice ? spin() : yield(waiter_.settings_.spin)) return;
    if (waiter_.hooks_) waiter_.hooks_->enter();
    const Leave leave{waiter_.hooks_};
    if (!yield(yield_time)) sleep();
  }

 private:
  struct Leave {
    WaitHooks* hooks;
    ~Leave() noexcept(false) {  // see WaitHooks::leave
      if (hooks) hooks->leave();
    }
  };

  bool spin() {
    while (Clock::now() - start_ < waiter_.settings_.spin)
      for (int turn = 0; turn < 16; ++turn) {
        if (ready_()) return true;
        relax_processor();
      }
    return false;
  }

  bool yield(Clock::duration duration) {
    const auto start = Clock::now();
    do {
      sched_yield();
      if (ready_()) return true;
    } while (Clock::now() - start < duration);
    return false;
  }

  void sleep() {
    while (!ready_()) {
      check_departures();
      const bool interrupted = sleep_once();
      if (ready_()) return;
      if (interrupted || Clock::now() >= next_look_) look_around();
    }
  }

  // Returns whether a signal came. Steps (1) and (2) of the protocol.
  bool sleep_once() {
    std::atomic<std::uint32_t>& doorbell = waiter_.peers_.doorbells[static_cast<std::size_t>(waiter_.rank_)]->awaited;
    const std::uint32_t awaited = peer_ < 0 ? Doorbell::any_peer : static_cast<std::uint32_t>(peer_) + 1;
    doorbell.store(awaited, std::memory_order_seq_cst);
    const bool sleeping = !ready_() && !anyone_missed();
    const bool signalled =
        sleeping && futex_sleep(doorbell, awaited, all_bits, monotonic_now() + slice_nanoseconds) == Slept::signalled;
    doorbell.store(0, std::memory_order_seq_cst);
    return signalled;
  }

  bool is_missed(std::size_t peer) const {
    const std::uint32_t state = waiter_.peers_.departures[peer]->state.load(std::memory_order_seq_cst);
    return state == Departure::broken || (state == Departure::left && static_cast<int>(peer) == peer_);
  }

  bool anyone_missed() const {
    for (std::size_t peer = 0; peer < waiter_.peers_.departures.size(); ++peer)
      if (is_missed(peer)) return true;
    return false;
  }

  // A rank that broke off takes everyone with it; one that left in good order is missed only by those who wait for it.
  void check_departures() {
    for (std::size_t peer = 0; peer < waiter_.peers_.departures.size(); ++peer) {
      if (!is_missed(peer) || ready_()) continue;
      throw Error(ErrorKind::peer_lost,
                  "rank " + std::to_string(peer) + " " + waiter_.peers_.departures[peer]->reason + " while " + who());
    }
  }

  void look_around() {
    next_look_ = Clock::now() + std::chrono::nanoseconds(slice_nanoseconds);
    if (waiter_.hooks_ && !waiter_.hooks_->poll())
      throw Error(ErrorKind::interrupted, "interrupted by a signal while " + who());
    check_lifelines();
    const double waited = seconds_since(start_);
    const WaitSettings& settings = waiter_.settings_;
    if (settings.timeout_seconds > 0 && waited > settings.timeout_seconds)
      throw Error(ErrorKind::timeout,
                  who() + ", for more than RINGRED_TIMEOUT_SECONDS=" + in_seconds(settings.timeout_seconds) +
                      ". Look at what that rank does (py-spy dump), or raise the limit.");
    if (settings.stall_seconds > 0 && waited > settings.stall_seconds && !reported_ && waiter_.hooks_) {
      reported_ = true;
      waiter_.hooks_->report(who() + ", for " + in_seconds(settings.stall_seconds) + " s so far.");
    }
  }

  void check_lifelines() {
    for (std::size_t peer = 0; peer < waiter_.peers_.lifelines.size(); ++peer) {
      if (!has_ended(waiter_.peers_.lifelines[peer])) continue;
      // Its last stores may have come just before its end, and it may have left in good order.
      const auto& departure = *waiter_.peers_.departures[peer];
      const bool in_order = departure.state.load(std::memory_order_acquire) == Departure::left;
      if ((in_order && static_cast<int>(peer) != peer_) || ready_()) continue;
      throw Error(ErrorKind::peer_lost, "the process of rank " + std::to_string(peer) + " ended while " + who());
    }
  }

  std::string who() const {
    return "rank " + std::to_string(waiter_.rank_) + " waits for " + whom() + " " + sentence_();
  }

  std::string whom() const { return peer_ < 0 ? "its peers" : "rank " + std::to_string(peer_); }

  Waiter& waiter_;
  const int peer_;
  FunctionRef<bool()> ready_;
  FunctionRef<std::string()> sentence_;
  const Clock::time_point start_;
  Clock::time_point next_look_{};
  bool reported_ = false;
};

Waiter::Waiter(int rank, Peers peers, WaitSettings settings, WaitHooks* hooks)
    : rank_(rank),
      mine_(static_cast<std::uint32_t>(rank) + 1),
      peers_(std::move(peers)),
      settings_(settings),
      hooks_(hooks),
      waited_(std::make_unique<Waited[]>(peers_.doorbells.size())) {
  for (std::size_t peer = 0; peer < peers_.doorbells.size(); ++peer)
    if (static_cast<int>(peer) != rank) others_.push_back(peers_.doorbells[peer]);
}

void Waiter::wait_long(int peer, FunctionRef<bool()> ready, FunctionRef<std::string()> sentence) {
  const Clock::time_point start = Clock::now();
  LongWait(*this, peer, ready, sentence).run();
  if (peer < 0) return;
  const auto add = [](std::atomic<std::uint64_t>& word, std::uint64_t more) {
    word.store(word.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
  };
  Waited& waited = waited_[static_cast<std::size_t>(peer)];
  add(waited.times, 1);
  add(waited.nanoseconds, static_cast<std::uint64_t>(std::chrono::nanoseconds(Clock::now() - start).count()));
}

void Waiter::throw_broken(FunctionRef<std::string()> sentence) {
  for (std::size_t peer = 0; peer < peers_.departures.size(); ++peer)
    if (peers_.departures[peer]->state.load(std::memory_order_seq_cst) == Departure::broken)
      throw Error(ErrorKind::peer_lost, "rank " + std::to_string(peer) + " " + peers_.departures[peer]->reason +
                                            " while rank " + std::to_string(rank_) + " was " + sentence());
  throw Error(ErrorKind::peer_lost, "a peer broke off");
}

// A waker that was held up here must not clear what the sleeper waits for by now.
void Waiter::wake(Doorbell& doorbell, std::uint32_t awaited) {
  if (doorbell.awaited.compare_exchange_strong(awaited, 0, std::memory_order_seq_cst))
    futex_wake(doorbell.awaited, 1, all_bits);
}

void Waiter::depart(Departure::State state, const std::string& reason) {
  Departure& mine = *peers_.departures[static_cast<std::size_t>(rank_)];
  if (mine.state.load(std::memory_order_relaxed) != Departure::present) return;
  store_text(mine.reason, reason);
  mine.state.store(state, std::memory_order_seq_cst);
  for (Doorbell* doorbell : others_) wake(*doorbell, doorbell->awaited.load(std::memory_order_seq_cst));
}

}  // namespace ringred
