// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/fat_image.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "ipc/result.h"

namespace bulkhead::launcher {
namespace {

constexpr uint32_t kSectorBytes = 512;
constexpr uint32_t kClusterSectors = 4;
constexpr uint32_t kClusterBytes = kSectorBytes * kClusterSectors;
constexpr uint32_t kRootEntries = 512;
constexpr uint32_t kEntryBytes = 32;
constexpr uint32_t kFats = 2;
// FAT16 is what has from 4085 to 65524 clusters; some readers take fewer than 4085 + 16 for something else.
constexpr uint64_t kMinClusters = 4101;
constexpr uint64_t kMaxBytes = uint64_t{64} << 20;
constexpr uint8_t kMediaFixed = 0xF8;
constexpr uint16_t kLastCluster = 0xFFFF;
constexpr uint8_t kAttributeReadOnly = 0x01, kAttributeLabel = 0x08, kAttributeLongName = 0x0F;
constexpr uint16_t kFirstDay = 1 << 5 | 1;  // 1 January 1980: day 0 is none
constexpr size_t kLongNameUnits = 13;       // of an entry
constexpr size_t kMaxNameBytes = 255;

template <typename Number>
void Put(std::string& bytes, size_t at, Number value) {
  for (size_t i = 0; i < sizeof value; ++i) bytes[at + i] = static_cast<char>(value >> 8 * i & 0xFF);
}

void PutText(std::string& bytes, size_t at, std::string_view text, size_t width) {
  for (size_t i = 0; i < width; ++i) bytes[at + i] = i < text.size() ? text[i] : ' ';
}

// Where things are, in sectors.
struct Layout {
  uint64_t clusters = 0;
  uint32_t fat_sectors = 0;

  explicit Layout(uint64_t used_clusters) : clusters(std::max(used_clusters, kMinClusters)) {
    fat_sectors = static_cast<uint32_t>(((clusters + 2) * 2 + kSectorBytes - 1) / kSectorBytes);
  }
  uint64_t fat(uint32_t number) const { return 1 + uint64_t{number} * fat_sectors; }
  uint64_t root() const { return fat(kFats); }
  uint64_t data() const { return root() + kRootEntries * kEntryBytes / kSectorBytes; }
  uint64_t end() const { return data() + clusters * kClusterSectors; }
};

std::string BootSector(const Layout& layout, std::string_view label) {
  std::string sector(kSectorBytes, '\0');
  PutText(sector, 0, "\xEB\x3C\x90", 3);
  PutText(sector, 3, "BULKHEAD", 8);
  Put<uint16_t>(sector, 11, kSectorBytes);
  Put<uint8_t>(sector, 13, kClusterSectors);
  Put<uint16_t>(sector, 14, 1);  // sectors before the first FAT
  Put<uint8_t>(sector, 16, kFats);
  Put<uint16_t>(sector, 17, kRootEntries);
  const uint64_t sectors = layout.end();
  if (sectors <= UINT16_MAX) {
    Put<uint16_t>(sector, 19, static_cast<uint16_t>(sectors));
  } else {
    Put<uint32_t>(sector, 32, static_cast<uint32_t>(sectors));
  }
  Put<uint8_t>(sector, 21, kMediaFixed);
  Put<uint16_t>(sector, 22, static_cast<uint16_t>(layout.fat_sectors));
  Put<uint16_t>(sector, 24, 32);  // sectors of a track, and heads: nobody asks for them any more
  Put<uint16_t>(sector, 26, 64);
  Put<uint8_t>(sector, 36, 0x80);  // a fixed disk
  Put<uint8_t>(sector, 38, 0x29);  // what follows is there
  Put<uint32_t>(sector, 39, 0x424B4844);
  PutText(sector, 43, label, 11);
  PutText(sector, 54, "FAT16", 8);
  Put<uint16_t>(sector, 510, 0xAA55);
  return sector;
}

std::string ShortEntry(std::string_view name, uint8_t attributes, uint16_t cluster, uint32_t size_bytes) {
  std::string entry(kEntryBytes, '\0');
  PutText(entry, 0, name, 11);
  Put<uint8_t>(entry, 11, attributes);
  Put<uint16_t>(entry, 16, kFirstDay);  // made, read, written
  Put<uint16_t>(entry, 18, kFirstDay);
  Put<uint16_t>(entry, 24, kFirstDay);
  Put<uint16_t>(entry, 26, cluster);
  Put<uint32_t>(entry, 28, size_bytes);
  return entry;
}

uint8_t Checksum(std::string_view short_name) {
  uint8_t sum = 0;
  for (const char each : short_name) {
    sum = static_cast<uint8_t>((sum >> 1 | sum << 7) + static_cast<uint8_t>(each));
  }
  return sum;
}

// The entries of a long name, which stand before the short one, its end first.
std::string LongEntries(const std::string& name, std::string_view short_name) {
  constexpr std::array<size_t, kLongNameUnits> kAt{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};
  const size_t count = (name.size() + kLongNameUnits - 1) / kLongNameUnits;
  std::string entries;
  for (size_t number = count; number >= 1; --number) {
    std::string entry(kEntryBytes, '\0');
    Put<uint8_t>(entry, 0, static_cast<uint8_t>(number | (number == count ? 0x40 : 0)));
    Put<uint8_t>(entry, 11, kAttributeLongName);
    Put<uint8_t>(entry, 13, Checksum(short_name));
    for (size_t i = 0; i < kLongNameUnits; ++i) {
      const size_t at = (number - 1) * kLongNameUnits + i;
      // A zero ends the name, ones fill its last entry.
      const uint16_t unit = at < name.size() ? static_cast<uint8_t>(name[at]) : at == name.size() ? 0 : 0xFFFF;
      Put<uint16_t>(entry, kAt[i], unit);
    }
    entries += entry;
  }
  return entries;
}

uint64_t ClustersOf(const FatFile& file) { return (file.contents.size() + kClusterBytes - 1) / kClusterBytes; }

uint64_t CheckFiles(const std::vector<FatFile>& files) {
  uint64_t bytes = 0, clusters = 0;
  for (const FatFile& file : files) {
    if (file.name.empty() || file.name.size() > kMaxNameBytes) throw FatalError("a file name of 0 or over 255 bytes");
    bytes += file.contents.size();
    clusters += ClustersOf(file);
  }
  if (bytes > kMaxBytes) throw FatalError("files of more than 64 MiB together", EFBIG);
  return clusters;
}

}  // namespace

FatImage MakeFatImage(std::string_view label, const std::vector<FatFile>& files) {
  const Layout layout(CheckFiles(files));
  FatImage image;
  image.size_bytes = layout.end() * kSectorBytes;
  image.pieces.push_back({0, BootSector(layout, label)});

  std::string root = ShortEntry(label, kAttributeLabel, 0, 0);
  std::string fat(4, '\0');
  Put<uint16_t>(fat, 0, 0xFF00 | kMediaFixed);
  Put<uint16_t>(fat, 2, kLastCluster);
  std::vector<FatPiece> data;
  for (size_t number = 0; number < files.size(); ++number) {
    const FatFile& file = files[number];
    const uint64_t first = fat.size() / 2;
    const uint64_t clusters = ClustersOf(file);
    // Unlike every long name, and nobody looks at it.
    std::string short_name = "F" + std::to_string(number);
    short_name.resize(11, ' ');
    root += LongEntries(file.name, short_name);
    root += ShortEntry(short_name, kAttributeReadOnly, static_cast<uint16_t>(clusters == 0 ? 0 : first),
                       static_cast<uint32_t>(file.contents.size()));
    for (uint64_t i = 1; i <= clusters; ++i) {
      fat.resize(fat.size() + 2);
      Put<uint16_t>(fat, fat.size() - 2, i == clusters ? kLastCluster : static_cast<uint16_t>(first + i));
    }
    if (clusters != 0) data.push_back({(layout.data() + (first - 2) * kClusterSectors) * kSectorBytes, file.contents});
  }
  if (root.size() > kRootEntries * kEntryBytes) throw FatalError("more files than a directory holds");
  for (uint32_t number = 0; number < kFats; ++number) image.pieces.push_back({layout.fat(number) * kSectorBytes, fat});
  image.pieces.push_back({layout.root() * kSectorBytes, std::move(root)});
  image.pieces.insert(image.pieces.end(), std::make_move_iterator(data.begin()), std::make_move_iterator(data.end()));
  return image;
}

}  // namespace bulkhead::launcher
