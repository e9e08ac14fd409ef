// SPDX-License-Identifier: Apache-2.0
#include "tests/process/repeating.h"

#include <algorithm>
#include <set>

namespace bulkhead::test {

size_t FirstNotRepeating(const std::string& original, const std::string& text) {
  constexpr size_t kMostBytes = 256;
  std::set<size_t> places{0};  // in the original where the text may have come to
  for (size_t i = 0; i < text.size(); ++i) {
    std::set<size_t> next;
    size_t seen = 0;
    for (const size_t place : places) {
      for (size_t at = std::max(seen, place - std::min(place, kMostBytes)); at <= place; ++at) {
        if (at < original.size() && original[at] == text[i]) next.insert(at + 1);
      }
      seen = place + 1;
    }
    if (next.empty()) return i;
    places = std::move(next);
  }
  return places.contains(original.size()) ? std::string::npos : text.size();
}

bool IsRepeating(const std::string& original, const std::string& text) {
  return FirstNotRepeating(original, text) == std::string::npos;
}

}  // namespace bulkhead::test
