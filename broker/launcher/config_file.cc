// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/config_file.h"

#include <algorithm>
#include <array>
#include <toml.hpp>

#include "broker/launcher/options.h"

namespace bulkhead::launcher {
namespace {

constexpr std::array<const char*, 14> kKeys{"name",  "memory",         "cpus",          "kernel", "initrd",
                                            "append", "disk",          "console",       "virtio-console",
                                            "debug-console", "display", "reboot", "on-device-failure", "exit-deadline"};

std::string Scalar(const std::string& where, const toml::value& value) {
  if (value.is_string()) return value.as_string();
  if (value.is_integer()) return std::to_string(value.as_integer());
  throw UsageError(where + ": a string or a number is needed");
}

}  // namespace

std::vector<std::string> ReadConfigFile(const std::string& path) {
  toml::value file;
  try {
    file = toml::parse(path);
  } catch (const toml::syntax_error& error) {
    std::string line = error.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    throw UsageError("--config " + path + ": " + line);
  } catch (const std::exception&) {
    throw UsageError("--config " + path + ": the file cannot be read");
  }
  std::vector<std::string> words;
  for (const auto& [key, value] : file.as_table()) {
    const std::string where = "--config " + path + ", line " + std::to_string(value.location().line()) + ", " + key;
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) throw UsageError(where + ": there is no such option");
    if (value.is_boolean()) {
      if (value.as_boolean()) words.push_back("--" + key);
    } else if (value.is_array()) {
      for (const toml::value& element : value.as_array()) words.insert(words.end(), {"--" + key, Scalar(where, element)});
    } else {
      words.insert(words.end(), {"--" + key, Scalar(where, value)});
    }
  }
  return words;
}

}  // namespace bulkhead::launcher
