// Where the members of a group are: which share a node, and who stands for whom on another one.
//
// Invariant: it follows from the members' nodes alone, so all members have the same answers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <vector>

namespace ringred {

class Nodes {
 public:
  // The node of each member, by any numbers. They are counted anew here, in order of their first members.
  explicit Nodes(const std::vector<int>& node_of_member) {
    std::map<int, int> numbers;
    for (std::size_t member = 0; member < node_of_member.size(); ++member) {
      const int node = numbers.try_emplace(node_of_member[member], static_cast<int>(numbers.size())).first->second;
      if (node == count()) members_.emplace_back();
      nodes_.push_back(node);
      places_.push_back(static_cast<int>(members_[at(node)].size()));
      members_[at(node)].push_back(static_cast<int>(member));
    }
  }

  std::size_t size() const { return nodes_.size(); }
  int count() const { return static_cast<int>(members_.size()); }
  bool several() const { return members_.size() > 1; }
  int of(int member) const { return nodes_[at(member)]; }
  const std::vector<int>& members(int node) const { return members_[at(node)]; }

  // How many the largest node has: into as many columns the data of each node is cut. Its members take them in turn.
  int columns() const {
    std::size_t most = 0;
    for (const auto& members : members_) most = std::max(most, members.size());
    return static_cast<int>(most);
  }
  // How many the smallest node has: columns whose owners have the same place on all nodes.
  int common_columns() const {
    std::size_t least = nodes_.size();
    for (const auto& members : members_) least = std::min(least, members.size());
    return static_cast<int>(least);
  }
  bool even() const {
    return std::all_of(members_.begin(), members_.end(),
                       [this](const auto& members) { return members.size() == members_.front().size(); });
  }
  int owner(int node, int column) const { return members_[at(node)][at(column) % members_[at(node)].size()]; }
  bool owns(int member, int column) const { return owner(of(member), column) == member; }
  std::vector<int> columns_of(int member) const {
    std::vector<int> owned;
    for (int column = 0; column < columns(); ++column)
      if (owns(member, column)) owned.push_back(column);
    return owned;
  }

  // The place of a member among those of its node.
  int place(int member) const { return places_[at(member)]; }

  // The member of another node that keeps a mirror of `member` there; the owner of the same column where nodes have
  // equally many.
  int keeper(int member, int node) const { return owner(node, places_[at(member)]); }

  // The members of other nodes whose mirrors `member` keeps, ascending.
  std::vector<int> kept_by(int member) const {
    std::vector<int> kept;
    for (std::size_t other = 0; other < nodes_.size(); ++other)
      if (nodes_[other] != of(member) && keeper(static_cast<int>(other), of(member)) == member)
        kept.push_back(static_cast<int>(other));
    return kept;
  }

 private:
  static std::size_t at(int number) { return static_cast<std::size_t>(number); }

  std::vector<int> nodes_, places_;  // by member; the latter among those of its node
  std::vector<std::vector<int>> members_;
};

}  // namespace ringred
