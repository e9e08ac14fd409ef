// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/config_file.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string_view>
#include <toml.hpp>

#include "broker/launcher/options.h"
#include "broker/launcher/suggestion.h"
#include "ipc/result.h"

namespace bulkhead::launcher {
namespace {

enum class Shape { kText, kSize, kNumber, kSwitch, kDisks, kNets, kStream, kLimits };
struct Key {
  const char* name;
  Shape shape;
};
constexpr std::array<Key, 20> kKeys{{{"name", Shape::kText},
                                     {"memory", Shape::kSize},
                                     {"cpus", Shape::kNumber},
                                     {"kernel", Shape::kText},
                                     {"initrd", Shape::kText},
                                     {"append", Shape::kText},
                                     {"disk", Shape::kDisks},
                                     {"cloud-init", Shape::kText},
                                     {"net", Shape::kNets},
                                     {"console", Shape::kStream},
                                     {"virtio-console", Shape::kStream},
                                     {"debug-console", Shape::kStream},
                                     {"display", Shape::kText},
                                     {"reboot", Shape::kSwitch},
                                     {"on-device-failure", Shape::kText},
                                     {"device-restarts", Shape::kNumber},
                                     {"exit-deadline", Shape::kNumber},
                                     {"limit", Shape::kLimits},
                                     {"uids", Shape::kText},
                                     {"require-sandbox", Shape::kText}}};

const Key* FindKey(const std::string& name) {
  const auto found = std::find_if(kKeys.begin(), kKeys.end(), [&](const Key& key) { return name == key.name; });
  return found == kKeys.end() ? nullptr : found;
}

std::string Text(const toml::value& value) {
  if (value.is_string()) return value.as_string();
  if (value.is_integer()) return std::to_string(value.as_integer());
  throw UsageError("a string is needed, in quotes");
}

// A string or a list of them.
std::vector<std::string> Texts(const toml::value& value) {
  if (!value.is_array()) return {Text(value)};
  std::vector<std::string> texts;
  for (const toml::value& each : value.as_array()) texts.push_back(Text(each));
  return texts;
}

// backing = ["a.qcow2", "b.img"] with backing-format = ["qcow2", "raw"], which may be left out, as --disk's
// "backing=a.qcow2,backing-format=qcow2,backing=b.img,backing-format=raw": a table keeps no order.
std::string BackingWords(const toml::value& table) {
  std::vector<std::string> files, formats;
  if (table.contains("backing")) files = Texts(table.at("backing"));
  if (table.contains("backing-format")) formats = Texts(table.at("backing-format"));
  if (!formats.empty() && formats.size() != files.size()) {
    throw UsageError("there must be as many values of backing-format as of backing, or none");
  }
  std::string words;
  for (size_t i = 0; i < files.size(); ++i) {
    words += ",backing=" + DoubleCommas(files[i]);
    if (!formats.empty()) words += ",backing-format=" + DoubleCommas(formats[i]);
  }
  return words;
}

// {file = "disk.img", readonly = true, id = "DATA"} as --disk's "disk.img,readonly=on,id=DATA".
std::string DiskWords(const toml::value& table) {
  std::string file, words = BackingWords(table);
  for (const auto& [key, value] : table.as_table()) {
    if (key == "backing" || key == "backing-format") continue;
    if (key == "file") {
      file = DoubleCommas(Text(value));
    } else {
      words += "," + key + "=" + (value.is_boolean() ? (value.as_boolean() ? "on" : "off") : DoubleCommas(Text(value)));
    }
  }
  if (file.empty()) throw UsageError("a disk needs file = \"PATH\"");
  return file + words;
}

// {tap = "tap0", ip = ["192.0.2.7", "2001:db8::7"]} as --net's "tap=tap0,ip=192.0.2.7+2001:db8::7", and
// {user = true, hostfwd = ["tcp::2222-:22", "udp::53-:53"]} as "user,hostfwd=tcp::2222-:22,hostfwd=udp::53-:53".
std::string NetWords(const toml::value& table) {
  std::string words;
  const auto add = [&words](const std::string& word) { words += (words.empty() ? "" : ",") + word; };
  for (const auto& [key, value] : table.as_table()) {
    if (value.is_boolean()) {
      if (key != "user") add(key + (value.as_boolean() ? "=on" : "=off"));
      if (key == "user" && value.as_boolean()) add(key);
    } else if (key == "ip") {
      add(key + "=" + fmt::format("{}", fmt::join(Texts(value), "+")));
    } else {
      for (const std::string& text : Texts(value)) add(key + "=" + text);
    }
  }
  if (words.empty()) throw UsageError("a network interface needs tap = \"NAME\", bridge = \"NAME\" or user = true");
  return words;
}

// {memory = "4G", cpu = 1.5} as --limit's "memory=4G,cpu=1.5".
std::string LimitWords(const toml::value& table) {
  std::string words;
  for (const auto& [key, value] : table.as_table()) {
    const std::string text = value.is_floating() ? fmt::format("{}", value.as_floating()) : Text(value);
    words += (words.empty() ? "" : ",") + key + "=" + text;
  }
  if (words.empty()) throw UsageError("a limit is needed, such as {memory = \"4G\"}");
  return words;
}

// The values of one key as --KEY=VALUE, each checked here, where the line in the file is known.
std::vector<std::string> Words(const Key& key, const toml::value& value) {
  const std::string option = std::string("--") + key.name;
  if (key.shape == Shape::kSwitch) {
    if (!value.is_boolean()) throw UsageError("true or false is needed");
    if (value.as_boolean()) return {option};
    return {};
  }
  if (key.shape == Shape::kDisks || key.shape == Shape::kNets) {
    const bool disks = key.shape == Shape::kDisks;
    std::vector<std::string> words;
    const auto add = [&](const toml::value& device) {
      const std::string text = !device.is_table() ? Text(device) : disks ? DiskWords(device) : NetWords(device);
      disks ? (void)ParseDisk(text) : (void)ParseNet(text);
      words.push_back(option + "=" + text);
    };
    if (value.is_array()) {
      for (const toml::value& device : value.as_array()) add(device);
    } else {
      add(value);
    }
    return words;
  }
  if (key.shape == Shape::kLimits) {
    const std::string text = value.is_table() ? LimitWords(value) : Text(value);
    LimitOptions checked;
    ParseLimits(text, checked);
    return {option + "=" + text};
  }
  const std::string text = Text(value);
  if (text.empty()) return {};  // as good as not there
  if (key.shape == Shape::kSize) ParseMemory(text);
  if (key.shape == Shape::kStream) ParseStream(option, text);
  if (std::string_view(key.name) == "cpus") ParseCpus(text);
  if (std::string_view(key.name) == "name") CheckName(text);
  return {option + "=" + text};
}

std::string ReadText(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    throw FatalError("--config '" + path + "': is not a regular file");
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw FatalError(ErrnoError(errno, "--config '" + path + "': cannot be read"));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The parser's own words and the line of what it found wrong; the rest of its message is a drawing of several lines.
[[noreturn]] void ThrowSyntaxError(const std::string& path, const toml::syntax_error& error) {
  std::string reason = error.what();
  reason = reason.substr(0, reason.find('\n'));
  for (const std::string_view prefix :
       {"[error] ", "toml::", "parse_toml_file: ", "parse_table: ", "parse_key_value_pair: "}) {
    if (reason.starts_with(prefix)) reason.erase(0, prefix.size());
  }
  throw UsageError("--config " + path + ", line " + std::to_string(error.location().line()) +
                   ": this is not TOML: " + reason);
}

}  // namespace

std::vector<std::string> ReadConfigFile(const std::string& path) {
  std::istringstream text(ReadText(path));
  toml::value file;
  try {
    file = toml::parse(text, path);
  } catch (const toml::syntax_error& error) {
    ThrowSyntaxError(path, error);
  }
  // In the order of the file, so that the first mistake in it is the one reported.
  std::vector<std::pair<std::string, toml::value>> entries(file.as_table().begin(), file.as_table().end());
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.second.location().line() < b.second.location().line(); });
  std::vector<std::string> words;
  for (const auto& [name, value] : entries) {
    const std::string where = "--config " + path + ", line " + std::to_string(value.location().line()) + ", " + name;
    const Key* key = FindKey(name);
    if (key == nullptr) {
      std::vector<std::string> known;
      for (const Key& each : kKeys) known.emplace_back(each.name);
      const std::string nearest = NearestWord(name, known);
      throw UsageError(where + ": there is no such option" +
                       (nearest.empty() ? "" : "; did you mean " + nearest + "?"));
    }
    try {
      const auto more = Words(*key, value);
      words.insert(words.end(), more.begin(), more.end());
    } catch (const UsageError& error) {
      throw UsageError(where + ": " + error.what());
    }
  }
  return words;
}

}  // namespace bulkhead::launcher
