// SPDX-License-Identifier: Apache-2.0
// Values of options: sizes, disks, streams, names, and QEMU's habits.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <set>

#include "broker/launcher/option_words.h"
#include "broker/launcher/options.h"

namespace bulkhead::launcher {
namespace {

constexpr uint64_t kMinMemory = uint64_t{16} << 20;
constexpr uint64_t kPageBytes = 4096;
constexpr size_t kMaxNameBytes = 48;
constexpr size_t kMaxSerialBytes = 20;  // virtio 1.2 §5.2.6: VIRTIO_BLK_T_GET_ID
constexpr size_t kMaxDiskFiles = 16;    // one below the other, that of the disk itself included
constexpr uint32_t kMaxCpus = 64;
constexpr uint64_t kMinLimit = uint64_t{64} << 20;
constexpr uint64_t kMaxLimit = uint64_t{8} << 40;
constexpr uint64_t kMaxTasks = 4194304;      // of Linux: PID_MAX_LIMIT
constexpr uint64_t kMinIoBytes = 64 << 10;   // less would stop every guest
constexpr uint32_t kMinCpuThousandths = 10;  // the least quota that the kernel takes
constexpr uint64_t kMaxLimitCpus = 8192;     // as many as Linux knows

// A number with K, M, G or T behind it, without one of them shifted by `plain_shift`.
bool ParseSize(std::string_view text, unsigned plain_shift, uint64_t& bytes) {
  static const std::map<char, unsigned> kShifts{{'K', 10}, {'M', 20}, {'G', 30}, {'T', 40}};
  if (text.empty()) return false;
  unsigned shift = plain_shift;
  const auto suffix = kShifts.find(static_cast<char>(std::toupper(static_cast<unsigned char>(text.back()))));
  if (suffix != kShifts.end()) {
    shift = suffix->second;
    text.remove_suffix(1);
  }
  uint64_t number = 0;
  if (!ParseNumber(text, number) || number > (~uint64_t{0} >> shift)) return false;
  bytes = number << shift;
  return true;
}

// "150%", "2" or "1.5" processors, in thousandths, which the rest of a fraction is below.
bool ParseProcessors(std::string_view text, uint32_t& thousandths) {
  const bool percent = text.ends_with('%');
  if (percent) text.remove_suffix(1);
  const size_t point = std::min(text.find('.'), text.size());
  const std::string_view fraction = text.substr(std::min(point + 1, text.size()));
  uint64_t whole = 0, part = 0;
  if (!ParseNumber(text.substr(0, point), whole) || whole > kMaxLimitCpus * 100) return false;
  if (point != text.size() && (!ParseNumber(fraction, part) || fraction.size() > 3)) return false;
  for (size_t digits = fraction.size(); digits < 3; ++digits) part *= 10;
  const uint64_t all = (whole * 1000 + part) / (percent ? 100 : 1);
  if (all < kMinCpuThousandths || all > kMaxLimitCpus * 1000) return false;
  thousandths = static_cast<uint32_t>(all);
  return true;
}

bool ParseSwitch(const std::string& key, const std::string& value) {
  if (value.empty() || value == "on") return true;
  if (value == "off") return false;
  throw UsageError("--disk: " + key + " is 'on' or 'off', not '" + value + "'");
}

DiskFormat ParseFormat(const std::string& key, const std::string& value) {
  if (value == "raw") return DiskFormat::kRaw;
  if (value == "qcow2") return DiskFormat::kQcow2;
  if (value == "qcow") return DiskFormat::kQcow;
  throw UsageError("--disk: " + key + " is raw, qcow2 or qcow, not '" + value +
                   "'; images of other formats can be converted with `qemu-img convert -O qcow2`");
}

DiskFormat FormatByName(const std::string& path) {
  if (path.ends_with(".qcow2")) return DiskFormat::kQcow2;
  if (path.ends_with(".qcow")) return DiskFormat::kQcow;
  return DiskFormat::kRaw;
}

void AddBacking(DiskOption& disk, const std::string& path) {
  if (path.empty()) throw UsageError("--disk: backing names the file below, as in backing=base.img");
  if (disk.backing.size() + 1 >= kMaxDiskFiles) {
    throw UsageError("--disk: an image has at most " + std::to_string(kMaxDiskFiles - 1) + " backing files");
  }
  disk.backing.push_back({.path = path, .format = FormatByName(path)});
}

void SetDiskWord(DiskOption& disk, const std::string& key, const std::string& value) {
  if (key == "format") {
    disk.format = ParseFormat(key, value);
  } else if (key == "backing") {
    AddBacking(disk, value);
  } else if (key == "backing-format") {
    if (disk.backing.empty()) throw UsageError("--disk: backing-format stands behind the backing=FILE that it is of");
    disk.backing.back().format = ParseFormat(key, value);
  } else if (key == "backing-from-header") {
    disk.backing_from_header = ParseSwitch(key, value);
  } else if (key == "readonly") {
    disk.read_only = ParseSwitch(key, value);
  } else if (key == "direct") {
    disk.direct = ParseSwitch(key, value);
  } else if (key == "id") {
    const bool printable = std::all_of(value.begin(), value.end(), [](char c) { return c > ' ' && c <= '~'; });
    if (value.empty() || value.size() > kMaxSerialBytes || !printable) {
      throw UsageError("--disk: id has 1 to 20 printable ASCII characters and no space, unlike '" + value + "'");
    }
    disk.id = value;
  } else if (key == "queues") {
    uint64_t queues = 0;
    if (!ParseNumber(value, queues) || queues < 1 || queues > 16)
      throw UsageError("--disk: queues is a number from 1 to 16");
    disk.queues = static_cast<uint16_t>(queues);
  } else if (!SetThrottleWord("--disk", "iops", disk.throttle, key, value)) {
    throw UsageError("--disk: unknown word '" + key +
                     "'; known are format, backing, backing-format, backing-from-header, readonly, id, direct, queues, "
                     "bps, bps-burst, iops and "
                     "iops-burst (a comma in a file's name is written ',,')");
  }
}

bool TakesValue(const std::string& word) {
  static const std::set<std::string> kWords{
      "-m",       "-c",           "--name",           "--memory",        "--cpus",    "--kernel",
      "--initrd", "--append",     "--disk",           "--console",       "--display", "--virtio-console",
      "--config", "--timeout",    "--debug-console",  "--exit-deadline", "--limit",   "--on-device-failure",
      "--net",    "--cloud-init", "--device-restarts"};
  return kWords.count(word) != 0;
}

[[noreturn]] void RefuseForeign(const std::string& word) {
  if (word == "-cdrom" || word == "-boot") {
    throw UsageError(word +
                     ": not supported by this version, which has no firmware to boot a CD or a disk by; give a "
                     "kernel with --kernel FILE");
  }
  if (word == "-drive" || word == "-device" || word == "-blockdev") {
    throw UsageError(word + ": not supported by this version; give an image with --disk FILE");
  }
  if (word == "-serial" || word == "-monitor" || word == "-chardev") {
    throw UsageError(word + ": not supported; the serial port is --console stdio, pty, unix=PATH, file=PATH or none");
  }
  if (word == "-net" || word == "-nic" || word == "-netdev") {
    throw UsageError(word + ": not supported; give a tap with --net tap=NAME or a bridge with --net bridge=NAME");
  }
  throw UsageError(word + ": not supported by this version, which has no display");
}

}  // namespace

bool ParseNumber(std::string_view text, uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::vector<std::string> SplitAtCommas(const std::string& text) {
  std::vector<std::string> pieces(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      pieces.back() += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == ',') {
      pieces.back() += text[++i];
    } else {
      pieces.emplace_back();
    }
  }
  return pieces;
}

bool SetThrottleWord(const std::string& what, const std::string& operations, ThrottleOption& throttle,
                     const std::string& key, const std::string& value) {
  const std::map<std::string, uint64_t*> words{{"bps", &throttle.bytes_per_second},
                                               {"bps-burst", &throttle.bytes_burst},
                                               {operations, &throttle.operations_per_second},
                                               {operations + "-burst", &throttle.operations_burst}};
  const auto word = words.find(key);
  if (word == words.end()) return false;
  if (!ParseSize(value, 0, *word->second)) {
    throw UsageError(what + ": " + key + "='" + value + "' is not a number such as 500, 64K or 10M; 0 is no limit");
  }
  return true;
}

void CheckBursts(const std::string& what, const std::string& operations, const ThrottleOption& throttle) {
  const auto check = [&](uint64_t burst, uint64_t limit, const std::string& word) {
    if (burst == 0 || limit != 0) return;
    throw UsageError(what + ": a burst says how much may be saved up of a limit that " + word +
                     " gives; give that too");
  };
  check(throttle.bytes_burst, throttle.bytes_per_second, "bps");
  check(throttle.operations_burst, throttle.operations_per_second, operations);
}

uint64_t ParseMemory(const std::string& text) {
  uint64_t bytes = 0;
  if (!ParseSize(text, 20, bytes)) {
    throw UsageError("-m: '" + text + "' is not a size; write it like 512 (MiB), 512M or 2G");
  }
  if (bytes < kMinMemory) throw UsageError("-m: " + text + " is too little; a guest needs at least 16 MiB");
  if (bytes % kPageBytes != 0) throw UsageError("-m: " + text + " is not a whole number of 4 KiB pages");
  return bytes;
}

DiskOption ParseDisk(const std::string& text) {
  DiskOption disk;
  const std::vector<std::string> words = SplitAtCommas(text);
  disk.path = words[0];
  if (disk.path.starts_with("file=")) disk.path.erase(0, 5);
  if (disk.path.empty()) throw UsageError("--disk: name an image, as in --disk disk.img");
  disk.format = FormatByName(disk.path);
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    SetDiskWord(disk, words[i].substr(0, equals), equals == std::string::npos ? "" : words[i].substr(equals + 1));
  }
  CheckBursts("--disk", "iops", disk.throttle);
  if (disk.backing_from_header && !disk.backing.empty()) {
    throw UsageError("--disk: give either backing=FILE or backing-from-header");
  }
  if (disk.format == DiskFormat::kQcow && !disk.read_only) {
    throw UsageError("--disk: '" + disk.path +
                     "' is a qcow image (version 1), which can only be read; add readonly, or convert it to qcow2");
  }
  return disk;
}

CloudInitOption ParseCloudInit(const std::string& text) {
  CloudInitOption option;
  const std::vector<std::string> words = SplitAtCommas(text);
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    const std::string key = word.substr(0, equals), value = equals == std::string::npos ? "" : word.substr(equals + 1);
    const bool known = std::find(kCloudInitFiles.begin(), kCloudInitFiles.end(), key) != kCloudInitFiles.end();
    if (key == "hostname") {
      option.hostname = value;
    } else if (known) {
      if (value.empty()) throw UsageError("--cloud-init: " + key + " names a file, as in " + key + "=FILE");
      option.files[key] = value;
    } else if (&word == &words.front() && !word.empty()) {
      option.directory = word;
    } else {
      throw UsageError("--cloud-init: unknown word '" + key +
                       "'; known are user-data, meta-data, network-config, vendor-data and hostname (a comma in a "
                       "file's name is written ',,')");
    }
  }
  if (option.directory.empty() && !option.files.contains("user-data")) {
    throw UsageError("--cloud-init: name a folder that has a file user-data, or give user-data=FILE");
  }
  return option;
}

ThrottleOption ParseThrottle(const std::string& text) {
  ThrottleOption throttle;
  if (text == "off") return throttle;
  for (const std::string& word : SplitAtCommas(text)) {
    const size_t equals = std::min(word.find('='), word.size());
    const std::string key = word.substr(0, equals);
    const std::string value = equals == word.size() ? "" : word.substr(equals + 1);
    if (!SetThrottleWord("throttle", "iops", throttle, key, value) &&
        !SetThrottleWord("throttle", "pps", throttle, key, value)) {
      throw UsageError("throttle: unknown word '" + key +
                       "'; known are bps, bps-burst, iops, iops-burst, pps and pps-burst, and off");
    }
  }
  CheckBursts("throttle", "iops or pps", throttle);
  return throttle;
}

void ParseUids(const std::string& text, RunOptions& run) {
  const size_t dash = text.find('-');
  uint64_t first = 0, last = 0;
  const bool numbers =
      dash != std::string::npos && ParseNumber(text.substr(0, dash), first) && ParseNumber(text.substr(dash + 1), last);
  if (!numbers || first == 0 || last < first || last >= UINT32_MAX) {
    throw UsageError("--uids: '" + text + "' is no range of user ids; write FIRST-LAST, such as 2000000-2065535");
  }
  run.first_uid = static_cast<uint32_t>(first);
  run.uid_count = static_cast<uint32_t>(last - first + 1);
}

void ParseLimits(const std::string& text, LimitOptions& limits) {
  for (const std::string& word : SplitAtCommas(text)) {
    const size_t equals = std::min(word.find('='), word.size());
    const std::string key = word.substr(0, equals);
    const std::string value = equals == word.size() ? "" : word.substr(equals + 1);
    const std::string wrong = "--limit: " + key + "='" + value + "' is not ";
    uint64_t number = 0;
    if (key == "memory") {
      if (!ParseSize(value, 20, number) || number < kMinLimit || number > kMaxLimit) {
        throw UsageError(wrong + "a size from 64M to 8T, such as 512 (MiB), 512M or 2G");
      }
      limits.memory_bytes = number;
    } else if (key == "cpu") {
      if (!ParseProcessors(value, limits.cpu_thousandths)) {
        throw UsageError(wrong + "a number of processors such as 2, 1.5 or 150%, and at least 1%");
      }
    } else if (key == "pids") {
      if (!ParseNumber(value, number) || number < 1 || number > kMaxTasks) {
        throw UsageError(wrong + "a number from 1 to " + std::to_string(kMaxTasks));
      }
      limits.tasks = static_cast<uint32_t>(number);
    } else if (key == "io") {
      if (!ParseSize(value, 0, number) || number < kMinIoBytes) {
        throw UsageError(wrong + "a number of bytes a second, at least 64K, such as 10M");
      }
      limits.io_bytes_per_second = number;
    } else {
      throw UsageError("--limit: unknown word '" + key + "'; known are memory, cpu, pids and io");
    }
  }
}

uint32_t ParseCpus(const std::string& text) {
  std::string_view digits = text;
  if (digits.starts_with("cpus=")) digits.remove_prefix(5);
  uint64_t number = 0;
  if (!ParseNumber(digits, number) || number < 1 || number > kMaxCpus) {
    throw UsageError("-c: '" + text + "' is not a number from 1 to " + std::to_string(kMaxCpus));
  }
  return static_cast<uint32_t>(number);
}

std::string DoubleCommas(std::string path) {
  for (size_t at = path.find(','); at != std::string::npos; at = path.find(',', at + 2)) path.insert(at, 1, ',');
  return path;
}

StreamOption ParseStream(const std::string& what, const std::string& text) {
  using Kind = StreamOption::Kind;
  if (text == "none") return {Kind::kNone, ""};
  if (text == "stdio") return {Kind::kStdio, ""};
  if (text == "pty") return {Kind::kPty, ""};
  if (text.starts_with("unix=") && text.size() > 5) return {Kind::kUnix, text.substr(5)};
  if (text.starts_with("file=") && text.size() > 5) return {Kind::kFile, text.substr(5)};
  throw UsageError(what + ": '" + text + "' is not one of stdio, pty, unix=PATH, file=PATH and none");
}

void CheckName(const std::string& name) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  const bool ok = !name.empty() && name.size() <= kMaxNameBytes && name[0] != '.' && name[0] != '-' &&
                  std::all_of(name.begin(), name.end(), plain);
  if (!ok) {
    throw UsageError("VM name '" + name +
                     "': use 1 to 48 letters, digits, '.', '_' and '-', starting with a letter or digit");
  }
}

std::vector<std::string> TranslateHabits(const std::vector<std::string>& arguments) {
  static const std::map<std::string, std::string> kSame{
      {"-kernel", "--kernel"}, {"-initrd", "--initrd"},  {"-append", "--append"}, {"-name", "--name"},
      {"-smp", "--cpus"},      {"-hda", "--disk"},       {"-hdb", "--disk"},      {"-hdc", "--disk"},
      {"-hdd", "--disk"},      {"-display", "--display"}};
  static const std::set<std::string> kForeign{"-cdrom",   "-boot",     "-net",    "-nic", "-netdev",
                                              "-drive",   "-device",   "-serial", "-vnc", "-monitor",
                                              "-chardev", "-blockdev", "-vga"};
  std::vector<std::string> translated;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (kForeign.count(word) != 0) RefuseForeign(word);
    if (word == "-nographic") continue;  // as it is here anyway
    // Of -m512 and -c4 the value may stand beside the letter; -machine and -cpu are other options of QEMU's.
    if ((word.starts_with("-m") || word.starts_with("-c")) && word.size() > 2 && std::isalpha(word[2]) != 0) {
      throw UsageError("unknown option '" + word + "' (see `bulkhead run --help`)");
    }
    const auto same = kSame.find(word);
    translated.push_back(same == kSame.end() ? word : same->second);
    // A value is passed on as it is, even one that looks like an option.
    if ((same == kSame.end() && !TakesValue(word)) || i + 1 == arguments.size()) continue;
    const std::string& value = arguments[++i];
    translated.push_back(word.starts_with("-hd") ? DoubleCommas(value) : value);
  }
  return translated;
}

}  // namespace bulkhead::launcher
