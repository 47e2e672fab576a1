#include "csrc/engine/communicator.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "csrc/base/differences.h"
#include "csrc/base/round.h"
#include "csrc/base/text.h"
#include "csrc/leaf/broadcast.h"
#include "csrc/leaf/one_shot.h"
#include "csrc/leaf/two_shot.h"
#include "csrc/memory/limits.h"

namespace ringred {
namespace {

// A staging slot takes a cache line of every rank at least.
Layout layout_of(int size, const Settings& settings) {
  return {one_shot_room(settings), std::max(settings.slot_bytes, 64 * static_cast<std::size_t>(size)),
          settings.one_shot_bytes};
}

std::size_t arena_start(int size, const Settings& settings) {
  constexpr std::size_t huge_page = std::size_t{2} << 20;
  const std::size_t control = layout_of(size, settings).end() + SegmentLinks::memory_bytes(size, settings.chunk_bytes);
  return round_up(control, huge_page);
}

Waiter waiter_of(const Communicator::Setup& setup) {
  Waiter::Peers peers;
  for (std::byte* base : setup.bases) {
    auto* block = reinterpret_cast<ControlBlock*>(base);
    peers.doorbells.push_back(&block->doorbell);
    peers.departures.push_back(&block->departure);
  }
  peers.lifelines = setup.lifelines;
  const Settings& settings = setup.settings;
  const bool cores_suffice = settings.wait == "auto" ? setup.cores_suffice : settings.wait == "spin";
  return Waiter(setup.rank, std::move(peers),
                {cores_suffice, std::chrono::microseconds(settings.spin_microseconds), settings.timeout_seconds,
                 settings.stall_seconds},
                setup.hooks.get());
}

}  // namespace

// One thread inside at a time. On the way out of an error that leaves the ranks in different places, the peers are
// told.
class Communicator::Entry {
 public:
  Entry(Communicator& communicator, const Call& call) : inside_(communicator.gate_, name_of(call.kind)) {
    if (!communicator.broken_.empty())
      throw Error(ErrorKind::peer_lost,
                  "The communicator is broken since an earlier call: " + communicator.broken_ + restart_remedy);
  }

 private:
  const Gate::Inside inside_;
};

// A call that moves much memory gives up the lock that others need (the GIL) for its whole length.
class Communicator::LongCall {
 public:
  LongCall(WaitHooks* hooks, std::size_t bytes) : LongCall(bytes >= long_bytes ? hooks : nullptr) {}
  explicit LongCall(WaitHooks* hooks) : hooks_(hooks) {
    if (hooks_) hooks_->enter();
  }
  ~LongCall() noexcept(false) {  // see WaitHooks::leave
    if (hooks_) hooks_->leave();
  }

 private:
  // Some 5 us of reduction, ten times what giving up the lock costs.
  static constexpr std::size_t long_bytes = 128 << 10;

  WaitHooks* hooks_;
};

std::shared_ptr<Arena> Communicator::make_arena(int size, const Settings& settings, std::size_t more) {
  const std::size_t start = arena_start(size, settings);
  const std::size_t wanted = more + (settings.arena_bytes > 0 ? settings.arena_bytes : machine_memory());
  const std::size_t bytes = Layout::round_up(std::min(start + wanted, file_size_limit() - Layout::page));
  if (bytes <= start)
    fail_system("The shared segment needs " + in_words(start) + " for its slots, and 'ulimit -f' allows files of " +
                in_words(file_size_limit()) + ". Raise that limit, or lower RINGRED_SLOT_BYTES.");
  Segment segment = Segment::create(bytes, settings.huge_pages);
  segment.commit(0, layout_of(size, settings).end());
  return std::make_shared<Arena>(std::move(segment), start);
}

Communicator::Communicator(Setup setup)
    : arena_(setup.arena),
      settings_(setup.settings),
      instruction_set_(instruction_set(setup.settings.isa)),
      team_(setup.rank, setup.bases, layout_of(setup.size, setup.settings), waiter_of(setup)),
      segments_(std::move(setup.segments)),
      hooks_(std::move(setup.hooks)),
      selection_(settings_, {1, setup.size, layout_of(setup.size, settings_).slot_bytes, settings_.chunk_bytes},
                 setup.costs) {}

template <class Body>
void Communicator::guarded(const Call& call, Body&& body) {
  const Entry entry(*this, call);
  try {
    body();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::usage || error.kind() == ErrorKind::mismatch) throw;
    break_off(error.what());
    const std::string_view end = broken_.ends_with('.') ? "" : ".";
    throw Error(error.kind(), broken_ + std::string(end) +
                                  (call.kind == CallKind::barrier ? "" : " The contents of the array are undefined.") +
                                  restart_remedy);
  } catch (const std::exception& error) {  // such as a lack of memory
    break_off(error.what());
    throw;
  }
}

void Communicator::break_off(const std::string& reason) {
  broken_ = reason;
  arena_->retire();
  team_.waiter().depart(Departure::broken, "broke off (" + reason + ")");
}

// Waits for everybody's line, and raises where they differ.
void Communicator::meet(const Call& call, Sentence sentence) {
  team_.await_lines(sentence);
  if (!team_.all_fingerprints_equal()) raise_mismatch(call);
}

void Communicator::barrier(std::string_view tag) {
  Call call;
  call.tag = tag;
  guarded(call, [&] {
    team_.begin_call();
    team_.announce(call.fingerprint(), 0);
    meet(call, [&] { return sentence_of(call); });
  });
}

void Communicator::broadcast(const Call& call, std::byte* data, std::size_t bytes) {
  if (call.root < 0 || call.root >= size())
    fail_usage("root_rank must be a rank, 0 to " + std::to_string(size() - 1) + ": it is " + std::to_string(call.root) +
               ".");
  guarded(call, [&] {
    const LongCall releasing(hooks_.get(), bytes);
    const auto sentence = [&] { return sentence_of(call); };
    const Broadcast bound{call.root, data, bytes, arena_->location(data, bytes), call.fingerprint()};
    team_.begin_call();
    broadcast_publish(team_, bound);
    meet(call, sentence);
    broadcast_complete(team_, bound, sentence);
  });
}

Reduction Communicator::bind(const Call& call, const std::byte* input, std::byte* output, std::size_t count) const {
  const std::size_t element_size = info(call.dtype).size;
  return {input,
          output,
          count,
          element_size,
          reduce_kernel(instruction_set_, call.dtype, call.op),
          size(),
          input == output ? arena_->location(output, count * element_size) : 0,
          call.fingerprint()};
}

void Communicator::run(const Call& call, const Reduction& reduction) {
  guarded(call, [&] {
    const LongCall releasing(hooks_.get(), reduction.bytes());
    if (size() == 1) return reduce_alone(reduction);
    const std::size_t bytes = reduction.bytes();
    perform(selection_.of(bytes, partial_dtype(call.dtype, call.op) == call.dtype), call, reduction);
    if (bytes <= Selection::sure_bytes) return;
    selection_.saw(bytes, all_in_arenas());
    if (selection_.is_due(bytes)) calibrate();
  });
}

void Communicator::perform(Way way, const Call& call, const Reduction& reduction) {
  const auto sentence = [&] { return sentence_of(call); };
  team_.begin_call();
  if (way == Way::one_shot) {
    one_shot_publish(team_, reduction);
    meet(call, sentence);
    one_shot_combine(team_, reduction);
  } else if (const std::optional<Algorithm> algorithm = schedule_of(way)) {
    team_.announce(reduction.fingerprint, reduction.location);
    meet(call, sentence);
    if (!scheduled_)
      scheduled_.emplace(team_, arena_->segment(), team_.layout().end(), settings_.chunk_bytes, instruction_set_);
    scheduled_->allreduce(*algorithm, call, reduction, sentence);
  } else {
    two_shot_publish(team_, reduction);
    meet(call, sentence);
    two_shot_complete(team_, reduction, sentence);
  }
}

bool Communicator::all_in_arenas() const {
  for (int peer = 0; peer < size(); ++peer)
    if (team_.line(peer).location == 0) return false;
  return true;
}

std::vector<Sample> Communicator::time_probes(std::span<const Probe> probes, double seconds) {
  Call call;
  call.tag = "calibration";
  std::vector<Sample> samples;
  barrier(call.tag);  // all call it, or it is a mismatch
  guarded(call, [&] {
    const LongCall releasing(hooks_.get());
    samples = take_samples(probes, seconds);
  });
  return samples;
}

// After a call that all ranks made, hence on all of them.
void Communicator::calibrate() {
  const LongCall releasing(hooks_.get());
  const std::vector<Probe> probes = brief_probes(selection_.one_shot_room());
  const std::vector<Sample> samples = take_samples(probes, Selection::calibration_seconds);
  selection_.take(samples.empty() ? selection_.costs() : fit(samples, selection_.placement(), selection_.costs()));
}

// The combination of one rank's values is these values.
void Communicator::reduce_alone(const Reduction& reduction) {
  if (reduction.input != reduction.output && reduction.count > 0)
    std::memmove(reduction.output, reduction.input, reduction.bytes());
}

void Communicator::raise_mismatch(const Call& call) {
  store_text(team_.block(rank()).description,
             fit_description(call.describe(), call.fingerprint(), sizeof(ControlBlock::description) - 1));
  const auto sentence = [] { return std::string("to say what it called, after ranks were found to disagree"); };
  team_.post();
  team_.await_phase_of_all(team_.phase(), sentence);
  const std::string text = mismatch_text();
  team_.post();  // nobody writes a description again before all have read it
  team_.await_phase_of_all(team_.phase(), sentence);
  throw Error(ErrorKind::mismatch, text);
}

std::string Communicator::mismatch_text() const {
  Differences differences;
  for (int peer = 0; peer < size(); ++peer) differences.add(peer, team_.block(peer).description);
  return differences.of_calls();
}

std::string Communicator::sentence_of(const Call& call) const {
  const std::uint64_t number = team_.number();
  return "in call " + std::to_string(number) + ", " + call.describe();
}

bool Communicator::leave(const std::string& reason) {
  if (!gate_.close(ended_with_shutdown)) {
    arena_->retire();
    team_.waiter().depart(Departure::broken, "broke off (" + reason + " in the middle of a call)");
    return false;
  }
  team_.waiter().depart(Departure::left, "left (" + reason + ")");
  return true;
}

void Communicator::abandon() {
  gate_.open_again();
  gate_.close(forked);
}

}  // namespace ringred
