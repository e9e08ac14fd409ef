// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/cmos_rtc.h"

#include <algorithm>

#include "device-procs/common/byte_access.h"
#include "ipc/platform.h"

namespace bulkhead::chipset {
namespace {

enum : uint8_t {
  kSeconds = 0x00,
  kSecondsAlarm = 0x01,
  kMinutes = 0x02,
  kMinutesAlarm = 0x03,
  kHours = 0x04,
  kHoursAlarm = 0x05,
  kWeekday = 0x06,
  kDay = 0x07,
  kMonth = 0x08,
  kYear = 0x09,
  kRegisterA = 0x0A,
  kRegisterB = 0x0B,
  kRegisterC = 0x0C,
  kRegisterD = 0x0D,
  kEquipment = 0x14,
  kBaseMemory = 0x15,      // KiB below 1 MiB, 2 bytes
  kExtendedMemory = 0x17,  // KiB above 1 MiB, 2 bytes; again at 0x30
  kChecksumBegin = 0x10,
  kChecksumEnd = 0x2E,  // the sum of the bytes before it, high byte first
  kExtendedMemoryAgain = 0x30,
  kCentury = 0x32,
  kMemoryAbove16M = 0x34,  // units of 64 KiB, 2 bytes
  kMemoryAbove4G = 0x5B,   // units of 64 KiB, 3 bytes
};

constexpr uint8_t kAUpdateInProgress = 0x80;
constexpr uint8_t kADivider = 0x70;
constexpr uint8_t kADividerRuns = 0x20;  // 32.768 kHz time base
constexpr uint8_t kARate = 0x0F;
constexpr uint8_t kBSet = 0x80;
constexpr uint8_t kBPeriodic = 0x40;
constexpr uint8_t kBAlarm = 0x20;
constexpr uint8_t kBUpdate = 0x10;
constexpr uint8_t kBBinary = 0x04;
constexpr uint8_t kB24Hours = 0x02;
constexpr uint8_t kCIrq = 0x80;  // flags of C stand where their enables stand in B
constexpr uint8_t kCFlags = kBPeriodic | kBAlarm | kBUpdate;
constexpr uint8_t kDValid = 0x80;
constexpr uint8_t kAfternoon = 0x80;
constexpr uint8_t kDontCare = 0xC0;

// UIP is set t_BUC (244 µs) before the update and through it (1984 µs); here the update itself takes no time,
// so all of it lies before the second's end, and a reader that saw UIP clear has that long.
constexpr int64_t kUpdateNs = 244'000 + 1'984'000;
// After a divider reset the first update comes half a second later.
constexpr int64_t kDividerResetNs = kNsPerSecond / 2;
constexpr int64_t kTimeBaseHz = 32'768;
constexpr int64_t kSecondsPerDay = 86'400;

bool IsTime(uint8_t index) {
  switch (index) {
    case kSeconds:
    case kMinutes:
    case kHours:
    case kWeekday:
    case kDay:
    case kMonth:
    case kYear:
    case kCentury:
      return true;
    default:
      return false;
  }
}

}  // namespace

CmosRtc::CmosRtc(device::EventLoop& loop, uint64_t memory_bytes, OwnFd irq, std::function<void()> on_alarm,
                 Clock realtime_ns)
    : realtime_ns_(std::move(realtime_ns)),
      irq_(std::move(irq)),
      on_alarm_(std::move(on_alarm)),
      timer_(loop, CLOCK_REALTIME, [this] { Update(); }) {
  registers_[kRegisterA] = kADividerRuns | 0x06;  // 1024 Hz, as PC firmware leaves it
  registers_[kRegisterB] = kB24Hours;
  FillMemorySize(memory_bytes);
  checked_ = Now();
}

void CmosRtc::FillMemorySize(uint64_t memory_bytes) {
  using platform::kKiB;
  using platform::kMiB;
  const auto put = [this](uint8_t index, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) registers_[index + i] = static_cast<uint8_t>(value >> (8 * i));
  };
  const uint64_t low = std::min(memory_bytes, platform::kLowRamLimit);
  const uint64_t above_1m = low > kMiB ? (low - kMiB) / kKiB : 0;
  const uint64_t above_16m = low > 16 * kMiB ? (low - 16 * kMiB) / (64 * kKiB) : 0;
  put(kBaseMemory, 640, 2);
  put(kExtendedMemory, std::min<uint64_t>(above_1m, 0xFFFF), 2);
  put(kExtendedMemoryAgain, std::min<uint64_t>(above_1m, 0xFFFF), 2);
  put(kMemoryAbove16M, std::min<uint64_t>(above_16m, 0xFFFF), 2);
  put(kMemoryAbove4G, std::min<uint64_t>((memory_bytes - low) / (64 * kKiB), 0xFF'FFFF), 3);
  registers_[kEquipment] = 0x02;  // a coprocessor, no floppy
  uint16_t sum = 0;
  for (uint8_t i = kChecksumBegin; i < kChecksumEnd; ++i) sum = static_cast<uint16_t>(sum + registers_[i]);
  registers_[kChecksumEnd] = static_cast<uint8_t>(sum >> 8);
  registers_[kChecksumEnd + 1] = static_cast<uint8_t>(sum);
}

uint64_t CmosRtc::Read(uint64_t offset, uint8_t width) {
  return device::ReadAsBytes(offset, width, [this](uint64_t at) -> uint8_t {
    return at == 1 ? ReadRegister(index_) : 0xFF;  // the index is write-only
  });
}

void CmosRtc::Write(uint64_t offset, uint8_t width, uint64_t value) {
  device::WriteAsBytes(offset, width, value, [this](uint64_t at, uint8_t byte) {
    if (at == 0) index_ = byte & 0x7F;  // bit 7 masks NMIs, of which there are none
    if (at == 1) WriteRegister(index_, byte);
  });
}

uint8_t CmosRtc::ReadRegister(uint8_t index) {
  switch (index) {
    case kRegisterA:
      return static_cast<uint8_t>(registers_[kRegisterA] | (UpdateInProgress() ? kAUpdateInProgress : 0));
    case kRegisterC: {
      Collect();
      const bool irq = (flags_ & registers_[kRegisterB] & kCFlags) != 0;
      const auto value = static_cast<uint8_t>(flags_ | (irq ? kCIrq : 0));
      flags_ = 0;
      UpdateInterrupt();
      return value;
    }
    case kRegisterD:
      return kDValid;
    default:
      if (IsTime(index) && Running()) ShowTime(Now().seconds);
      return registers_[index];
  }
}

void CmosRtc::WriteRegister(uint8_t index, uint8_t value) {
  switch (index) {
    case kRegisterA:
    case kRegisterB:
      WriteControl(index, value);
      return;
    case kRegisterC:
    case kRegisterD:
      return;
    default:
      break;
  }
  Collect();
  if (IsTime(index) && Running()) {
    const Instant now = Now();
    ShowTime(now.seconds);
    registers_[index] = value;
    SetTime(ShownTime(), now.nanoseconds);
  } else {
    registers_[index] = value;
  }
  UpdateInterrupt();
}

void CmosRtc::WriteControl(uint8_t index, uint8_t value) {
  Collect();
  const Instant now = Now();
  const bool was_running = Running();
  const bool divider_was_reset = (registers_[kRegisterA] & kADivider) != kADividerRuns;
  if (was_running) ShowTime(now.seconds);
  if (index == kRegisterA) {
    registers_[kRegisterA] = value & ~kAUpdateInProgress;
  } else {
    // SET going high clears UIE.
    registers_[kRegisterB] = (value & kBSet) != 0 ? value & ~kBUpdate : value;
  }
  if (Running() && !was_running) {
    SetTime(ShownTime(), divider_was_reset ? kNsPerSecond - kDividerResetNs : now.nanoseconds);
  }
  UpdateInterrupt();
}

bool CmosRtc::Running() const {
  return (registers_[kRegisterB] & kBSet) == 0 && (registers_[kRegisterA] & kADivider) == kADividerRuns;
}

CmosRtc::Instant CmosRtc::Now() const {
  const int64_t host_ns = realtime_ns_();
  Instant now{host_ns / kNsPerSecond + offset_seconds_, host_ns % kNsPerSecond + offset_nanoseconds_};
  if (now.nanoseconds >= kNsPerSecond) {
    now.nanoseconds -= kNsPerSecond;
    ++now.seconds;
  }
  return now;
}

int64_t CmosRtc::HostTimeOf(const Instant& instant) const {
  return (instant.seconds - offset_seconds_) * kNsPerSecond + instant.nanoseconds - offset_nanoseconds_;
}

bool CmosRtc::UpdateInProgress() const { return Running() && Now().nanoseconds >= kNsPerSecond - kUpdateNs; }

uint8_t CmosRtc::Encode(int value) const {
  if ((registers_[kRegisterB] & kBBinary) != 0) return static_cast<uint8_t>(value);
  return static_cast<uint8_t>(value / 10 * 16 + value % 10);
}

int CmosRtc::Decode(uint8_t value) const {
  if ((registers_[kRegisterB] & kBBinary) != 0) return value;
  return (value >> 4) * 10 + (value & 0x0F);
}

uint8_t CmosRtc::EncodeHour(int hour) const {
  if ((registers_[kRegisterB] & kB24Hours) != 0) return Encode(hour);
  const int shown = hour % 12 == 0 ? 12 : hour % 12;
  return static_cast<uint8_t>(Encode(shown) | (hour >= 12 ? kAfternoon : 0));
}

int CmosRtc::DecodeHour(uint8_t value) const {
  if ((registers_[kRegisterB] & kB24Hours) != 0) return Decode(value);
  const int hour = Decode(value & ~kAfternoon) % 12;
  return (value & kAfternoon) != 0 ? hour + 12 : hour;
}

void CmosRtc::ShowTime(int64_t seconds) {
  const CivilTime time = CivilFrom(seconds);
  registers_[kSeconds] = Encode(time.second);
  registers_[kMinutes] = Encode(time.minute);
  registers_[kHours] = EncodeHour(time.hour);
  registers_[kWeekday] = Encode(time.weekday);
  registers_[kDay] = Encode(time.day);
  registers_[kMonth] = Encode(time.month);
  registers_[kYear] = Encode(static_cast<int>(time.year % 100));
  registers_[kCentury] = Encode(static_cast<int>(time.year / 100));
}

// What the registers say, brought into range: a guest can write anything.
int64_t CmosRtc::ShownTime() const {
  const auto field = [this](uint8_t index, int low, int high) {
    return std::clamp(Decode(registers_[index]), low, high);
  };
  return SecondsFrom({.year = field(kCentury, 0, 99) * 100 + field(kYear, 0, 99),
                      .month = field(kMonth, 1, 12),
                      .day = field(kDay, 1, 31),
                      .hour = std::clamp(DecodeHour(registers_[kHours]), 0, 23),
                      .minute = field(kMinutes, 0, 59),
                      .second = field(kSeconds, 0, 59)});
}

void CmosRtc::SetTime(int64_t seconds, int64_t nanoseconds) {
  const int64_t host_ns = realtime_ns_();
  offset_seconds_ = seconds - host_ns / kNsPerSecond;
  offset_nanoseconds_ = nanoseconds - host_ns % kNsPerSecond;
  if (offset_nanoseconds_ < 0) {
    offset_nanoseconds_ += kNsPerSecond;
    --offset_seconds_;
  }
  checked_ = Now();
}

// The first match of the alarm bytes after `after`; a byte with its two top bits set matches anything.
std::optional<CmosRtc::Instant> CmosRtc::NextAlarm(const Instant& after) const {
  const auto matches = [this](uint8_t index, int decoded, int64_t value) {
    return (registers_[index] & kDontCare) == kDontCare || decoded == value;
  };
  const int hour = DecodeHour(registers_[kHoursAlarm]);
  const int minute = Decode(registers_[kMinutesAlarm]);
  const int second = Decode(registers_[kSecondsAlarm]);
  const int64_t end = after.seconds + kSecondsPerDay;
  for (int64_t at = after.seconds + 1; at <= end;) {
    const int64_t of_day = ((at % kSecondsPerDay) + kSecondsPerDay) % kSecondsPerDay;
    if (!matches(kHoursAlarm, hour, of_day / 3600)) {
      at += 3600 - of_day % 3600;
    } else if (!matches(kMinutesAlarm, minute, of_day / 60 % 60)) {
      at += 60 - of_day % 60;
    } else if (!matches(kSecondsAlarm, second, of_day % 60)) {
      ++at;
    } else {
      return Instant{at, 0};
    }
  }
  return std::nullopt;
}

// Rates: data sheet table 5 for the 32.768 kHz time base; 1 and 2 repeat 8 and 9.
std::optional<CmosRtc::Instant> CmosRtc::NextPeriodic(const Instant& after) const {
  const int rate = registers_[kRegisterA] & kARate;
  if (rate == 0 || (registers_[kRegisterA] & kADivider) != kADividerRuns) return std::nullopt;
  const int64_t period = int64_t{1} << ((rate <= 2 ? rate + 7 : rate) - 1);  // in ticks of the time base
  const int64_t ticks = after.nanoseconds * kTimeBaseHz / kNsPerSecond;
  const int64_t next = (ticks / period + 1) * period;
  if (next >= kTimeBaseHz) return Instant{after.seconds + 1, 0};
  return Instant{after.seconds, (next * kNsPerSecond + kTimeBaseHz - 1) / kTimeBaseHz};
}

// Takes what has happened since the last look into the flags.
void CmosRtc::Collect() {
  const Instant now = Now();
  if (now > checked_) {
    if (const auto periodic = NextPeriodic(checked_); periodic && *periodic <= now) flags_ |= kBPeriodic;
    if (Running()) {
      if (now.seconds > checked_.seconds) flags_ |= kBUpdate;
      if (const auto alarm = NextAlarm(checked_); alarm && *alarm <= now) flags_ |= kBAlarm;
    }
  }
  checked_ = now;  // also where the host's clock went back
}

void CmosRtc::UpdateInterrupt() {
  ArmTimer();
  if (paused_) return;
  const uint8_t causes = flags_ & registers_[kRegisterB] & kCFlags;
  const bool active = causes != 0;
  if (active && !line_) {
    SignalEventFd(irq_.get());
    if ((causes & kBAlarm) != 0 && on_alarm_) on_alarm_();
  }
  line_ = active;
}

// The soonest event that would raise the interrupt; none while it is up, since nothing more can happen until
// C is read.
void CmosRtc::ArmTimer() {
  const uint8_t enabled = registers_[kRegisterB] & kCFlags;
  if (paused_ || enabled == 0 || (flags_ & enabled) != 0) {
    timer_.Arm(std::nullopt);
    return;
  }
  std::optional<Instant> soonest;
  const auto consider = [&soonest](std::optional<Instant> at) {
    if (at && (!soonest || *at < *soonest)) soonest = at;
  };
  if ((enabled & kBPeriodic) != 0) consider(NextPeriodic(checked_));
  if ((enabled & kBUpdate) != 0 && Running()) consider(Instant{checked_.seconds + 1, 0});
  if ((enabled & kBAlarm) != 0 && Running()) consider(NextAlarm(checked_));
  timer_.Arm(soonest ? std::optional(HostTimeOf(*soonest)) : std::nullopt);
}

void CmosRtc::Update() {
  Collect();
  UpdateInterrupt();
}

void CmosRtc::Pause() {
  paused_ = true;
  timer_.Arm(std::nullopt);
}

void CmosRtc::Resume() {
  paused_ = false;
  line_ = false;
  Update();
}

void CmosRtc::Save(state::CmosState::Builder state) const {
  state.setIndex(index_);
  state.setRegisters(capnp::Data::Reader(registers_.data(), registers_.size()));
  state.setFlags(flags_);
  state.setOffsetSeconds(offset_seconds_);
  state.setOffsetNanoseconds(static_cast<uint32_t>(offset_nanoseconds_));
  state.setCheckedSeconds(checked_.seconds);
  state.setCheckedNanoseconds(static_cast<uint32_t>(checked_.nanoseconds));
}

Result<void> CmosRtc::Restore(state::CmosState::Reader state) {
  // No guest can set its clock beyond these (about 8700 years), and sums with them cannot overflow.
  constexpr int64_t kMaxSeconds = int64_t{1} << 38;
  const auto in_range = [](int64_t seconds, uint32_t nanoseconds) {
    return seconds > -kMaxSeconds && seconds < kMaxSeconds && nanoseconds < kNsPerSecond;
  };
  const auto registers = state.getRegisters();
  if (registers.size() != kRegisters || !in_range(state.getOffsetSeconds(), state.getOffsetNanoseconds()) ||
      !in_range(state.getCheckedSeconds(), state.getCheckedNanoseconds())) {
    return Error{EPROTO, "the saved state of the real-time clock is invalid"};
  }
  std::copy(registers.begin(), registers.end(), registers_.begin());
  registers_[kRegisterA] &= ~kAUpdateInProgress;
  index_ = state.getIndex() & 0x7F;
  flags_ = state.getFlags() & kCFlags;
  offset_seconds_ = state.getOffsetSeconds();
  offset_nanoseconds_ = state.getOffsetNanoseconds();
  checked_ = {state.getCheckedSeconds(), state.getCheckedNanoseconds()};
  line_ = false;
  return {};
}

}  // namespace bulkhead::chipset
