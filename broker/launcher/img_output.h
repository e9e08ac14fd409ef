// SPDX-License-Identifier: Apache-2.0
// What `bulkhead img` prints, in the words and shapes of qemu-img. Launcher, main thread. Names come from headers:
// hostile.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ipc/image.capnp.h"

namespace bulkhead::launcher {

// "196 KiB", with three digits that count.
std::string HumanSize(uint64_t bytes);

// `disk_bytes`: what the file takes on its file system.
std::string HumanInfo(const std::string& path, uint64_t disk_bytes, control::ImageInfo::Reader info);
nlohmann::json JsonInfo(const std::string& path, uint64_t disk_bytes, control::ImageInfo::Reader info);

std::string HumanSnapshots(capnp::List<control::ImageSnapshot>::Reader snapshots);

std::string HumanCheck(control::ImageCheck::Reader report, bool repaired);
nlohmann::json JsonCheck(const std::string& path, const std::string& format, control::ImageCheck::Reader report);

const char* FormatName(control::ImageGrant::Format format);

}  // namespace bulkhead::launcher
