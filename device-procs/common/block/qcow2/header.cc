// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/header.h"

#include <array>

namespace bulkhead::qcow2 {
namespace {

enum Field : size_t {
  kVersion = 4,
  kBackingOffset = 8,
  kBackingSize = 16,
  kClusterBits = 20,
  kSize = 24,
  kCryptMethod = 32,
  kL1Size = 36,
  kL1Offset = 40,
  kRefcountTableOffset = 48,
  kRefcountTableClusters = 56,
  kSnapshotCount = 60,
  kSnapshotsOffset = 64,
  kIncompatible = 72,
  kCompatible = 80,
  kAutoclear = 88,
  kRefcountOrder = 96,
  kHeaderLength = 100,
  kCompressionField = 104,
};
constexpr size_t kVersion2Bytes = 72;
constexpr size_t kVersion3Bytes = 104;
constexpr size_t kWrittenBytes = 112;  // with the compression type and its padding
constexpr size_t kMaxUnknownExtensions = 64;

Error Bad(const std::string& what) { return {EINVAL, what}; }

// The parts of a header beyond its fixed fields.
class Parser {
 public:
  Parser(std::span<const std::byte> bytes, Header& header) : bytes_(bytes), header_(header) {}

  Result<void> Features() {
    if (header_.version == 2) {
      header_length_ = kVersion2Bytes;
      return {};
    }
    header_.incompatible = U64(kIncompatible);
    header_.compatible = U64(kCompatible);
    header_.autoclear = U64(kAutoclear);
    header_.layout.refcount_order = U32(kRefcountOrder);
    header_length_ = U32(kHeaderLength);
    if (header_length_ < kVersion3Bytes || header_length_ % 8 != 0 || header_length_ > header_.layout.cluster_bytes()) {
      return Bad("its header says that it is " + std::to_string(header_length_) + " bytes long, which cannot be");
    }
    if (header_.layout.refcount_order > kMaxRefcountOrder) return Bad("its refcounts are wider than 64 bits");
    return Incompatible();
  }

  Result<void> Extensions() {
    uint64_t at = header_length_;
    // A backing file name may follow; the extensions end before it (and before the first cluster does).
    const uint64_t backing_offset = U64(kBackingOffset);
    const uint64_t end = backing_offset != 0 ? backing_offset : header_.layout.cluster_bytes();
    while (at + 8 <= end && at + 8 <= bytes_.size()) {
      const uint32_t type = U32(at);
      const uint64_t length = U32(at + 4);
      at += 8;
      if (type == kEndOfExtensions) return {};
      if (length > end - at || length > bytes_.size() - at) return Bad("a header extension is longer than the header");
      if (auto taken = Take(type, bytes_.subspan(at, length)); !taken.ok()) return taken;
      at += RoundUp(length, 8);
    }
    return {};
  }

  Result<void> BackingFile() {
    const uint64_t offset = U64(kBackingOffset);
    const uint32_t length = U32(kBackingSize);
    if (offset == 0) return {};
    const uint64_t cluster = header_.layout.cluster_bytes();
    if (length > kMaxBackingNameBytes || offset > cluster || length > cluster - offset || offset > bytes_.size() ||
        length > bytes_.size() - offset) {
      return Bad("the name of its backing file does not lie in its first cluster");
    }
    header_.backing_file.assign(reinterpret_cast<const char*>(bytes_.data() + offset), length);
    if (header_.backing_file.find('\0') != std::string::npos)
      return Bad("the name of its backing file has a zero byte");
    return {};
  }

  uint32_t U32(size_t at) const { return LoadBe32(bytes_.data() + at); }
  uint64_t U64(size_t at) const { return LoadBe64(bytes_.data() + at); }

 private:
  Result<void> Incompatible() {
    const uint64_t features = header_.incompatible;
    if ((features & kExternalData) != 0)
      return Bad("it keeps its data in another file (data_file), which is not supported");
    if ((features & kExtendedL2) != 0) {
      return Bad(
          "it has subclusters (extended_l2), which are not supported; convert it with `qemu-img convert -O qcow2`");
    }
    const uint64_t unknown = features & ~(kDirty | kCorrupt | kCompressionType);
    if (unknown != 0) {
      return Bad("it needs features that are not known here (incompatible feature bits " + std::to_string(unknown) +
                 ")");
    }
    if ((features & kCompressionType) == 0) return {};
    const bool said = header_length_ > kCompressionField && bytes_.size() > kCompressionField;
    const uint8_t type = said ? static_cast<uint8_t>(bytes_[kCompressionField]) : 0;
    // The bit says that the type is not the default (zlib).
    if (type != static_cast<uint8_t>(Compression::kZstd)) {
      return Bad("its compression type " + std::to_string(type) + " is not known here");
    }
    header_.compression = Compression::kZstd;
    return {};
  }

  Result<void> Take(uint32_t type, std::span<const std::byte> data) {
    switch (type) {
      case kBackingFormat:
        if (data.size() > 64) return Bad("the name of its backing file's format is too long");
        header_.backing_format.assign(reinterpret_cast<const char*>(data.data()), data.size());
        return {};
      case kFeatureNames:
        return {};  // written anew
      case kBitmapsExtension:
        // Valid only together with its autoclear bit, which a writer that keeps no bitmaps clears. What it names stays
        // allocated until a program that knows bitmaps removes them.
        break;
      default:
        break;
    }
    if (header_.unknown.size() == kMaxUnknownExtensions) return Bad("its header has too many extensions");
    header_.unknown.push_back({type, {data.begin(), data.end()}});
    return {};
  }

  std::span<const std::byte> bytes_;
  Header& header_;
  uint64_t header_length_ = 0;
};

Result<void> CheckTables(const Header& header) {
  const uint64_t cluster_mask = header.layout.cluster_mask();
  if (header.size_bytes % kSectorBytes != 0) {
    return Bad("its disk size is not a multiple of 512 bytes");
  }
  const uint64_t entries = header.layout.L1Entries(header.size_bytes);
  if (entries * sizeof(uint64_t) > kMaxL1Bytes) {
    return Bad("its disk of " + std::to_string(header.size_bytes) + " bytes is too large for its clusters of " +
               std::to_string(header.layout.cluster_bytes()) + " bytes");
  }
  if (header.l1_entries < entries || uint64_t{header.l1_entries} * sizeof(uint64_t) > kMaxL1Bytes) {
    return Bad("its first-level table has " + std::to_string(header.l1_entries) + " entries where its disk needs " +
               std::to_string(entries));
  }
  const bool tables_named = (header.l1_offset != 0 || header.l1_entries == 0) && header.refcount_table_offset != 0;
  if (!tables_named || (header.l1_offset & cluster_mask) != 0 || (header.refcount_table_offset & cluster_mask) != 0 ||
      header.l1_offset >= kMaxFileBytes || header.refcount_table_offset >= kMaxFileBytes) {
    return Bad("its tables are not where tables can be");
  }
  if (header.refcount_table_clusters == 0 || header.refcount_table_bytes() > kMaxRefcountTableBytes) {
    return Bad("its refcount table of " + std::to_string(header.refcount_table_clusters) + " clusters cannot be");
  }
  if (header.snapshot_count > kMaxSnapshots || (header.snapshots_offset & cluster_mask) != 0 ||
      header.snapshots_offset >= kMaxFileBytes) {
    return Bad("its table of snapshots cannot be where the header says");
  }
  return {};
}

void AppendExtension(std::vector<std::byte>& out, uint32_t type, std::span<const std::byte> data) {
  const size_t at = out.size();
  out.resize(at + 8 + RoundUp(data.size(), 8));
  StoreBe32(out.data() + at, type);
  StoreBe32(out.data() + at + 4, static_cast<uint32_t>(data.size()));
  if (!data.empty()) std::memcpy(out.data() + at + 8, data.data(), data.size());
}

// What other programs print when they do not know a feature.
std::vector<std::byte> FeatureNames() {
  struct Name {
    uint8_t kind, bit;
    const char* text;
  };
  constexpr Name kNames[] = {{0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
                             {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
                             {2, 0, "bitmaps"}};
  constexpr size_t kEntryBytes = 48;
  std::vector<std::byte> table(std::size(kNames) * kEntryBytes);
  for (size_t i = 0; i < std::size(kNames); ++i) {
    std::byte* entry = table.data() + i * kEntryBytes;
    entry[0] = std::byte{kNames[i].kind};
    entry[1] = std::byte{kNames[i].bit};
    std::memcpy(entry + 2, kNames[i].text, std::strlen(kNames[i].text));
  }
  return table;
}

}  // namespace

bool LooksLikeQcow2(std::span<const std::byte> bytes) {
  if (bytes.size() < 8 || LoadBe32(bytes.data()) != kMagic) return false;
  const uint32_t version = LoadBe32(bytes.data() + kVersion);
  return version == 2 || version == 3;
}

Result<uint32_t> ParseClusterBits(std::span<const std::byte> bytes) {
  if (bytes.size() < kVersion3Bytes || LoadBe32(bytes.data()) != kMagic) return Bad("it is not a qcow2 image");
  const uint32_t version = LoadBe32(bytes.data() + kVersion);
  if (version != 2 && version != 3) {
    return Bad("it is a qcow image of version " + std::to_string(version) + ", not of 2 or 3");
  }
  const uint32_t bits = LoadBe32(bytes.data() + kClusterBits);
  if (bits < kMinClusterBits || bits > kMaxClusterBits) {
    return Bad("its clusters are of 2^" + std::to_string(bits) + " bytes; 512 bytes to 2 MiB are possible");
  }
  return bits;
}

Result<Header> ParseHeader(std::span<const std::byte> bytes) {
  const auto cluster_bits = ParseClusterBits(bytes);
  if (!cluster_bits.ok()) return cluster_bits.error();
  Header header;
  Parser parser(bytes, header);
  header.version = parser.U32(kVersion);
  header.layout.cluster_bits = *cluster_bits;
  header.size_bytes = parser.U64(kSize);
  header.l1_entries = parser.U32(kL1Size);
  header.l1_offset = parser.U64(kL1Offset);
  header.refcount_table_offset = parser.U64(kRefcountTableOffset);
  header.refcount_table_clusters = parser.U32(kRefcountTableClusters);
  header.snapshot_count = parser.U32(kSnapshotCount);
  header.snapshots_offset = parser.U64(kSnapshotsOffset);
  if (parser.U32(kCryptMethod) != 0) return Bad("it is encrypted, which is not supported");
  if (auto checked = parser.Features(); !checked.ok()) return checked.error();
  if (auto checked = CheckTables(header); !checked.ok()) return checked.error();
  if (auto checked = parser.Extensions(); !checked.ok()) return checked.error();
  if (auto checked = parser.BackingFile(); !checked.ok()) return checked.error();
  return header;
}

void UpdateHeader(const Header& header, std::span<std::byte> bytes) {
  const auto put32 = [&](size_t at, uint32_t value) { StoreBe32(bytes.data() + at, value); };
  const auto put64 = [&](size_t at, uint64_t value) { StoreBe64(bytes.data() + at, value); };
  put64(kSize, header.size_bytes);
  put32(kL1Size, header.l1_entries);
  put64(kL1Offset, header.l1_offset);
  put64(kRefcountTableOffset, header.refcount_table_offset);
  put32(kRefcountTableClusters, header.refcount_table_clusters);
  put32(kSnapshotCount, header.snapshot_count);
  put64(kSnapshotsOffset, header.snapshots_offset);
  if (header.version == 2) return;
  put64(kIncompatible, header.incompatible);
  put64(kCompatible, header.compatible);
  put64(kAutoclear, header.autoclear);
}

Result<std::vector<std::byte>> SerializeHeader(const Header& header) {
  const bool old = header.version == 2;
  std::vector<std::byte> out(old ? kVersion2Bytes : kWrittenBytes);
  StoreBe32(out.data(), kMagic);
  StoreBe32(out.data() + kVersion, header.version);
  StoreBe32(out.data() + kClusterBits, header.layout.cluster_bits);
  UpdateHeader(header, out);
  if (!old) {
    StoreBe32(out.data() + kRefcountOrder, header.layout.refcount_order);
    StoreBe32(out.data() + kHeaderLength, kWrittenBytes);
    out[kCompressionField] = static_cast<std::byte>(header.compression);
  }
  if (!header.backing_format.empty()) {
    AppendExtension(out, kBackingFormat, std::as_bytes(std::span(header.backing_format)));
  }
  for (const UnknownExtension& extension : header.unknown) AppendExtension(out, extension.type, extension.data);
  const auto names = FeatureNames();
  const uint64_t needed = out.size() + 8 + names.size() + 8 + header.backing_file.size();
  if (!old && needed <= header.layout.cluster_bytes()) AppendExtension(out, kFeatureNames, names);
  AppendExtension(out, kEndOfExtensions, {});
  if (!header.backing_file.empty()) {
    StoreBe64(out.data() + kBackingOffset, out.size());
    StoreBe32(out.data() + kBackingSize, static_cast<uint32_t>(header.backing_file.size()));
    const auto name = std::as_bytes(std::span(header.backing_file));
    out.insert(out.end(), name.begin(), name.end());
  }
  if (header.backing_file.size() > kMaxBackingNameBytes || out.size() > header.layout.cluster_bytes()) {
    return Bad("the header does not fit into a cluster of " + std::to_string(header.layout.cluster_bytes()) +
               " bytes; use a shorter name for the backing file, or larger clusters");
  }
  out.resize(header.layout.cluster_bytes());
  return out;
}

}  // namespace bulkhead::qcow2
