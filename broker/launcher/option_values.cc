// SPDX-License-Identifier: Apache-2.0
// Values of options: sizes, disks, streams, names, and QEMU's habits.
#include <algorithm>
#include <charconv>
#include <map>

#include "broker/launcher/options.h"

namespace bulkhead::launcher {
namespace {

constexpr uint64_t kMinMemory = uint64_t{16} << 20;
constexpr uint64_t kPageBytes = 4096;
constexpr size_t kMaxNameBytes = 48;
constexpr size_t kMaxSerialBytes = 20;

bool ParseNumber(std::string_view text, uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

bool ParseSwitch(const std::string& key, const std::string& value) {
  if (value.empty() || value == "on") return true;
  if (value == "off") return false;
  throw UsageError("--disk: " + key + " is 'on' or 'off', not '" + value + "'");
}

void SetDiskWord(DiskOption& disk, const std::string& key, const std::string& value) {
  if (key == "format") {
    if (value == "raw") return;
    throw UsageError("--disk: format '" + value +
                     "' is not supported by this version, only raw; convert with `qemu-img convert -O raw`");
  }
  if (key == "readonly") {
    disk.read_only = ParseSwitch(key, value);
  } else if (key == "direct") {
    disk.direct = ParseSwitch(key, value);
  } else if (key == "id") {
    if (value.empty() || value.size() > kMaxSerialBytes) throw UsageError("--disk: id has 1 to 20 characters");
    disk.id = value;
  } else if (key == "queues") {
    uint64_t queues = 0;
    if (!ParseNumber(value, queues) || queues < 1 || queues > 16) throw UsageError("--disk: queues is a number from 1 to 16");
    disk.queues = static_cast<uint16_t>(queues);
  } else {
    throw UsageError("--disk: unknown word '" + key + "'; known are format, readonly, id, direct and queues");
  }
}

}  // namespace

uint64_t ParseMemory(const std::string& text) {
  const std::string wrong = "-m: '" + text + "' is not a size; write it like 512 (MiB), 512M or 2G";
  if (text.empty()) throw UsageError(wrong);
  static const std::map<char, unsigned> kShifts{{'K', 10}, {'M', 20}, {'G', 30}, {'T', 40}};
  std::string_view digits = text;
  unsigned shift = 20;
  const auto suffix = kShifts.find(static_cast<char>(std::toupper(static_cast<unsigned char>(text.back()))));
  if (suffix != kShifts.end()) {
    shift = suffix->second;
    digits.remove_suffix(1);
  }
  uint64_t number = 0;
  if (!ParseNumber(digits, number) || number > (~uint64_t{0} >> shift)) throw UsageError(wrong);
  const uint64_t bytes = number << shift;
  if (bytes < kMinMemory) throw UsageError("-m: " + text + " is too little; a guest needs at least 16 MiB");
  if (bytes % kPageBytes != 0) throw UsageError("-m: " + text + " is not a whole number of 4 KiB pages");
  return bytes;
}

DiskOption ParseDisk(const std::string& text) {
  DiskOption disk;
  size_t at = text.find(',');
  disk.path = text.substr(0, at);
  if (disk.path.starts_with("file=")) disk.path.erase(0, 5);
  if (disk.path.empty()) throw UsageError("--disk: name an image, as in --disk disk.img");
  while (at != std::string::npos) {
    const size_t end = text.find(',', at + 1);
    const std::string word = text.substr(at + 1, end == std::string::npos ? end : end - at - 1);
    const size_t equals = word.find('=');
    SetDiskWord(disk, word.substr(0, equals), equals == std::string::npos ? "" : word.substr(equals + 1));
    at = end;
  }
  return disk;
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
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
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
      {"-kernel", "--kernel"}, {"-initrd", "--initrd"}, {"-append", "--append"}, {"-name", "--name"},
      {"-smp", "--cpus"},      {"-hda", "--disk"},      {"-hdb", "--disk"},      {"-hdc", "--disk"},
      {"-hdd", "--disk"},      {"-display", "--display"}};
  std::vector<std::string> translated;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word == "-cdrom" || word == "-boot" || word == "-net" || word == "-nic" || word == "-netdev" || word == "--net" ||
        word == "-drive" || word == "-vnc") {
      throw UsageError(word + ": this version has no such device yet; it boots --kernel with raw --disk images");
    }
    if (word == "-nographic") continue;  // as it is here anyway
    const auto same = kSame.find(word);
    if (same == kSame.end()) {
      translated.push_back(word);
      continue;
    }
    translated.push_back(same->second);
    if (i + 1 == arguments.size()) continue;
    std::string value = arguments[++i];
    if (word == "-smp" && value.starts_with("cpus=")) value.erase(0, 5);
    translated.push_back(value);
  }
  return translated;
}

}  // namespace bulkhead::launcher
