// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/throttle.h"

#include <algorithm>
#include <chrono>

namespace bulkhead::device {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kDefaultBurstNs = kSecondNs / 10;
// No limits make anyone wait for longer than the time that a clock can tell.
constexpr uint64_t kLongestNs = UINT64_MAX / 4;

uint64_t TimeOf(uint64_t amount, uint64_t per_second) {
  const auto time = static_cast<unsigned __int128>(amount) * kSecondNs / per_second;
  return static_cast<uint64_t>(std::min<unsigned __int128>(time, kLongestNs));
}

}  // namespace

ThrottleLimits ThrottleLimitsOf(control::DiskThrottle::Reader limits) {
  return {.bytes = {.per_second = limits.getBytesPerSecond(), .burst = limits.getBytesBurst()},
          .operations = {.per_second = limits.getOperationsPerSecond(), .burst = limits.getOperationsBurst()}};
}

void Throttle::Bucket::Set(const ThrottleLimit& limit) {
  per_second_ = limit.per_second;
  full_at_ns_ = 0;
  if (per_second_ == 0) return;
  burst_ns_ = limit.burst != 0 ? TimeOf(limit.burst, per_second_) : kDefaultBurstNs;
}

uint64_t Throttle::Bucket::WaitNs(uint64_t now_ns) const {
  if (per_second_ == 0 || full_at_ns_ <= now_ns) return 0;
  const uint64_t owed_ns = full_at_ns_ - now_ns;
  // The burst itself may be spent to its end; what goes beyond it is waited for.
  return owed_ns < burst_ns_ ? 0 : std::max<uint64_t>(owed_ns - burst_ns_, 1);
}

void Throttle::Bucket::Charge(uint64_t now_ns, uint64_t amount) {
  if (per_second_ == 0) return;
  full_at_ns_ = std::min(std::max(full_at_ns_, now_ns) + TimeOf(amount, per_second_), now_ns + kLongestNs);
}

uint64_t Throttle::NowNs() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

void Throttle::Set(const ThrottleLimits& limits) {
  std::lock_guard lock(mutex_);
  bytes_.Set(limits.bytes);
  operations_.Set(limits.operations);
  limited_ = limits.bytes.per_second != 0 || limits.operations.per_second != 0;
}

uint64_t Throttle::WaitNs(uint64_t now_ns) const {
  std::lock_guard lock(mutex_);
  return std::max(bytes_.WaitNs(now_ns), operations_.WaitNs(now_ns));
}

void Throttle::Charge(uint64_t now_ns, uint64_t bytes, uint64_t operations) {
  std::lock_guard lock(mutex_);
  bytes_.Charge(now_ns, bytes);
  operations_.Charge(now_ns, operations);
}

}  // namespace bulkhead::device
