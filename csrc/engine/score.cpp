#include "csrc/engine/score.h"

#include <algorithm>
#include <string>
#include <utility>

namespace ringred {

Score::Score(int chunks, std::vector<Lane> lanes) : chunks_(chunks), lanes_(std::move(lanes)), heads_(lanes_.size()) {
  for (const Lane& lane : lanes_) moves_.emplace_back(lane.size());
  for (std::size_t lane = 0; lane < lanes_.size(); ++lane) heads_[lane].step = lanes_[lane].size();
}

void Score::rewind(std::size_t count, std::size_t element_size) {
  if (element_size_ != element_size || count_ != count) {
    element_size_ = 0;  // what fails half-way is not laid out
    lay_out(count, element_size);
    count_ = count;
    element_size_ = element_size;
  }
  unfinished_ = lanes_.size();
  for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
    heads_[lane].step = 0;
    enter(lane);
  }
}

void Score::lay_out(std::size_t count, std::size_t element_size) {
  spans_.clear();
  for (std::size_t lane = 0; lane < lanes_.size(); ++lane)
    for (std::size_t number = 0; number < lanes_[lane].size(); ++number) {
      const Step& step = lanes_[lane][number];
      Move& move = moves_[lane][number];
      move.out = spans_.size();
      append_spans(spans_, step.out, chunks_, count, element_size);
      move.in = spans_.size();
      append_spans(spans_, step.in, chunks_, count, element_size);
      move.end = spans_.size();
      move.same_chunks = step.out == step.in;
    }
}

void Score::enter(std::size_t lane) {
  if (ended(lane)) {
    --unfinished_;
    return;
  }
  Head& head = heads_[lane];
  const Move& move = moves_[lane][head.step];
  head.out = Cursor(spans_.data() + move.out, spans_.data() + move.in);
  head.in = Cursor(spans_.data() + move.in, spans_.data() + move.end);
}

Stall Score::stall(std::size_t lane) const {
  if (ended(lane)) return {};
  const Head& head = heads_[lane];
  Stall stall{&step(lane), static_cast<int>(lane), head.step, lanes_[lane].size(), {}, {}, {}};
  for (const Dependency& dependency : stall.step->after)
    if (!has_ended(dependency)) stall.other_lane = dependency;
  if (stall.other_lane) return stall;
  if (!head.out.done()) stall.out_chunk = chunk_at(head.out, stall.step->out);
  if (!head.in.done() && in_may_move(lane)) stall.in_chunk = chunk_at(head.in, stall.step->in);
  return stall;
}

std::string Score::waiting_for() const {
  std::string text;
  for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
    const std::string part = describe(stall(lane));
    text += (text.empty() || part.empty() ? "" : "; ") + part;
  }
  return text;
}

std::vector<int> Score::waiting_peers() const {
  std::vector<int> peers;
  for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
    const Stall one = stall(lane);
    for (int peer : {one.out_chunk ? one.step->to : -1, one.in_chunk ? one.step->from : -1})
      if (peer >= 0 && std::find(peers.begin(), peers.end(), peer) == peers.end()) peers.push_back(peer);
  }
  return peers;
}

int Score::waiting_peer() const {
  const std::vector<int> peers = waiting_peers();
  return peers.size() == 1 ? peers.front() : -1;
}

int Score::chunk_at(const Cursor& cursor, const std::vector<int>& list) const {
  for (int chunk : list) {
    const Span span = chunk_span(chunk, chunks_, count_, element_size_);
    if (span.begin <= cursor.at() && cursor.at() < span.end) return chunk;
  }
  return -1;
}

}  // namespace ringred
