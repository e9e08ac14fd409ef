// SPDX-License-Identifier: Apache-2.0
// A small FAT16 file system made of files in memory, as a disk image (Microsoft, "FAT: General Overview of On-Disk
// Format", 1.03). Launcher, main thread; names and contents are the user's own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bulkhead::launcher {

struct FatFile {
  std::string name;  // ASCII, at most 255 bytes
  std::string contents;
};

// One piece of an image; what no piece covers is zero.
struct FatPiece {
  uint64_t offset_bytes = 0;
  std::string bytes;
};

struct FatImage {
  uint64_t size_bytes = 0;
  std::vector<FatPiece> pieces;
};

// All files in the root directory, in this order. The same files make the same image. `label`: at most 11 bytes, lower
// case stays. Throws FatalError if the files are too many or too large (more than 64 MiB together).
FatImage MakeFatImage(std::string_view label, const std::vector<FatFile>& files);

}  // namespace bulkhead::launcher
