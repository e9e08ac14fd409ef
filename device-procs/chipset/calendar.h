// SPDX-License-Identifier: Apache-2.0
// Civil time in the proleptic Gregorian calendar, without time zones. Pure functions.
#pragma once

#include <cstdint>

namespace bulkhead::chipset {

struct CivilTime {
  int64_t year = 1970;
  int month = 1;  // 1 to 12
  int day = 1;    // 1 to 31
  int hour = 0;
  int minute = 0;
  int second = 0;
  int weekday = 5;  // 1 (Sunday) to 7, as the MC146818A counts; ignored by SecondsFrom
};

// Seconds since 1970-01-01 00:00:00. Days beyond the month's end run on into the next month.
int64_t SecondsFrom(const CivilTime& time);
CivilTime CivilFrom(int64_t seconds);

}  // namespace bulkhead::chipset
