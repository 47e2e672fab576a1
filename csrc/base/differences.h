// Who submitted what, where ranks that should agree do not.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "csrc/base/text.h"

namespace ringred {

class Differences {
 public:
  void add(int rank, const std::string& description) {
    std::vector<int>& ranks = ranks_[description];
    if (ranks.empty()) order_.push_back(description);
    ranks.push_back(rank);
  }

  // "ranks 0, 2 called barrier(); rank 1 called ..." in the order in which they were added.
  std::string text(const std::string& verb) const {
    std::string text;
    for (const std::string& description : order_)
      text += (text.empty() ? "" : "; ") + list_ranks(ranks_.at(description)) + " " + verb + " " + description;
    return text;
  }

  // Of a call that is refused on all ranks.
  std::string of_calls() const {
    return "All ranks must make the same call: " + text("called") + ". Nothing was changed, and the next call works.";
  }

 private:
  std::map<std::string, std::vector<int>> ranks_;  // by description
  std::vector<std::string> order_;
};

}  // namespace ringred
