// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/calendar.h"

#include <chrono>

namespace bulkhead::chipset {
namespace {

constexpr int64_t kSecondsPerDay = 86'400;

}  // namespace

int64_t SecondsFrom(const CivilTime& time) {
  using namespace std::chrono;
  const sys_days first(year(static_cast<int>(time.year)) / month(static_cast<unsigned>(time.month)) / 1);
  const int64_t days = first.time_since_epoch().count() + time.day - 1;
  return days * kSecondsPerDay + time.hour * 3600 + time.minute * 60 + time.second;
}

CivilTime CivilFrom(int64_t seconds) {
  using namespace std::chrono;
  int64_t day_count = seconds / kSecondsPerDay;
  int64_t rest = seconds % kSecondsPerDay;
  if (rest < 0) {
    rest += kSecondsPerDay;
    --day_count;
  }
  const sys_days when{days(day_count)};
  const year_month_day date(when);
  return {.year = static_cast<int>(date.year()),
          .month = static_cast<int>(static_cast<unsigned>(date.month())),
          .day = static_cast<int>(static_cast<unsigned>(date.day())),
          .hour = static_cast<int>(rest / 3600),
          .minute = static_cast<int>(rest / 60 % 60),
          .second = static_cast<int>(rest % 60),
          .weekday = static_cast<int>(weekday(when).c_encoding()) + 1};
}

}  // namespace bulkhead::chipset
