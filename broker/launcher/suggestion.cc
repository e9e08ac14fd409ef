// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/suggestion.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace bulkhead::launcher {
namespace {

// Nobody mistypes a word of more than this.
constexpr size_t kMaxWordBytes = 40;

std::string WithoutDashes(const std::string& word) {
  const size_t start = word.find_first_not_of('-');
  return start == std::string::npos ? "" : word.substr(start);
}

// Levenshtein's distance: insertions, deletions and substitutions from one word to the other.
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string NearestWord(const std::string& word, const std::vector<std::string>& known) {
  const std::string plain = WithoutDashes(word);
  if (plain.size() < 2 || plain.size() > kMaxWordBytes) return "";
  std::string nearest;
  size_t least = std::min<size_t>(2, plain.size() / 2) + 1;
  for (const std::string& each : known) {
    const size_t distance = Distance(plain, WithoutDashes(each));
    if (distance >= least) continue;
    least = distance;
    nearest = each;
  }
  return nearest;
}

}  // namespace bulkhead::launcher
