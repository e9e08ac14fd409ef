// SPDX-License-Identifier: Apache-2.0
// Values of options: sizes, disks, streams, names, and QEMU's habits.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <set>

#include "broker/launcher/options.h"

namespace bulkhead::launcher {
namespace {

constexpr uint64_t kMinMemory = uint64_t{16} << 20;
constexpr uint64_t kPageBytes = 4096;
constexpr size_t kMaxNameBytes = 48;
constexpr size_t kMaxSerialBytes = 20;  // virtio 1.2 §5.2.6: VIRTIO_BLK_T_GET_ID
constexpr uint32_t kMaxCpus = 64;

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
  } else {
    throw UsageError("--disk: unknown word '" + key +
                     "'; known are format, readonly, id, direct and queues (a comma in a file's name is written ',,')");
  }
}

// The pieces between single commas; a double comma stands for a comma.
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

bool TakesValue(const std::string& word) {
  static const std::set<std::string> kWords{"-m",
                                            "-c",
                                            "--name",
                                            "--memory",
                                            "--cpus",
                                            "--kernel",
                                            "--initrd",
                                            "--append",
                                            "--disk",
                                            "--console",
                                            "--display",
                                            "--virtio-console",
                                            "--config",
                                            "--timeout",
                                            "--debug-console",
                                            "--exit-deadline",
                                            "--on-device-failure"};
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
  if (word == "-net" || word == "-nic" || word == "-netdev" || word == "--net") {
    throw UsageError(word + ": not supported by this version, which has no network device");
  }
  throw UsageError(word + ": not supported by this version, which has no display");
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
  const std::vector<std::string> words = SplitAtCommas(text);
  disk.path = words[0];
  if (disk.path.starts_with("file=")) disk.path.erase(0, 5);
  if (disk.path.empty()) throw UsageError("--disk: name an image, as in --disk disk.img");
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    SetDiskWord(disk, words[i].substr(0, equals), equals == std::string::npos ? "" : words[i].substr(equals + 1));
  }
  return disk;
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
  static const std::set<std::string> kForeign{"-cdrom",   "-boot",    "-net",      "-nic",    "-netdev",
                                              "--net",    "-drive",   "-device",   "-serial", "-vnc",
                                              "-monitor", "-chardev", "-blockdev", "-vga"};
  std::vector<std::string> translated;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (kForeign.count(word) != 0 || word.starts_with("--net=")) RefuseForeign(word.substr(0, word.find('=')));
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
