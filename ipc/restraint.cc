// SPDX-License-Identifier: Apache-2.0
#include "ipc/restraint.h"

#include <algorithm>

namespace bulkhead {
namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kMinuteNs = 60'000 * kMs;
constexpr int64_t kShortLifeNs = 1'000 * kMs;
constexpr int64_t kFirstDelayNs = 20 * kMs;
constexpr unsigned kMaxDoublings = 6;
// So many short lives may be bad luck.
constexpr unsigned kForgiven = 2;

}  // namespace

std::optional<int64_t> Restraint::Died(int64_t now_ns) {
  while (!deaths_ns_.empty() && now_ns - deaths_ns_.front() > kMinuteNs) deaths_ns_.pop_front();
  if (deaths_ns_.size() >= most_) return std::nullopt;
  const bool short_life = !deaths_ns_.empty() && now_ns - deaths_ns_.back() < kShortLifeNs;
  short_lives_ = short_life ? short_lives_ + 1 : 0;
  deaths_ns_.push_back(now_ns);
  if (short_lives_ <= kForgiven) return 0;
  return kFirstDelayNs << std::min(short_lives_ - kForgiven - 1, kMaxDoublings);
}

}  // namespace bulkhead
