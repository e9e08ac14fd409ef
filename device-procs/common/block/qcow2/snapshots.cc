// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/snapshots.h"

#include <algorithm>

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/qcow2/check.h"
#include "device-procs/common/block/qcow2/table_walk.h"

namespace bulkhead::qcow2 {
namespace {

using device::Task;

constexpr size_t kFixedBytes = 40;
constexpr size_t kKnownExtraBytes = 16;  // large VM state size, disk size
constexpr uint64_t kReadPiece = 64 * 1024;

// Reads a table of entries without a fixed size, from its start on.
class TableReader {
 public:
  explicit TableReader(ImageState& state) : state_(state), at_(state.header.snapshots_offset) {}

  // The next bytes; they lie in the file.
  Task<Result<std::vector<std::byte>>> Take(size_t size) {
    while (bytes_.size() - used_ < size) {
      if (at_ >= state_.file_end || at_ - state_.header.snapshots_offset > kMaxSnapshotTableBytes) {
        co_return Error{EINVAL, "its table of snapshots is longer than the file, or than 16 MiB"};
      }
      Buffer piece(kReadPiece);
      const int error = co_await device::ReadFrom(state_.file, at_, piece.data(), piece.size());
      if (error != 0) co_return ErrnoError(error, "reading the table of snapshots");
      bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<ptrdiff_t>(used_));
      used_ = 0;
      bytes_.insert(bytes_.end(), piece.data(), piece.data() + piece.size());
      at_ += kReadPiece;
    }
    const auto from = bytes_.begin() + static_cast<ptrdiff_t>(used_);
    used_ += size;
    taken_ += size;
    co_return std::vector<std::byte>(from, from + static_cast<ptrdiff_t>(size));
  }
  uint64_t taken() const { return taken_; }

 private:
  ImageState& state_;
  uint64_t at_;
  std::vector<std::byte> bytes_;
  size_t used_ = 0;
  uint64_t taken_ = 0;
};

std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::byte> Encode(const Snapshot& snapshot) {
  std::vector<std::byte> out(kFixedBytes + kKnownExtraBytes);
  StoreBe64(out.data(), snapshot.l1_offset);
  StoreBe32(out.data() + 8, snapshot.l1_entries);
  StoreBe16(out.data() + 12, static_cast<uint16_t>(snapshot.id.size()));
  StoreBe16(out.data() + 14, static_cast<uint16_t>(snapshot.name.size()));
  StoreBe32(out.data() + 16, snapshot.date_sec);
  StoreBe32(out.data() + 20, snapshot.date_nsec);
  StoreBe64(out.data() + 24, snapshot.vm_clock_ns);
  StoreBe32(out.data() + 32, static_cast<uint32_t>(std::min<uint64_t>(snapshot.vm_state_bytes, UINT32_MAX)));
  StoreBe32(out.data() + 36, static_cast<uint32_t>(kKnownExtraBytes + snapshot.more.size()));
  StoreBe64(out.data() + 40, snapshot.vm_state_bytes);
  StoreBe64(out.data() + 48, snapshot.disk_bytes);
  out.insert(out.end(), snapshot.more.begin(), snapshot.more.end());
  for (const std::string* text : {&snapshot.id, &snapshot.name}) {
    const auto bytes = std::as_bytes(std::span(*text));
    out.insert(out.end(), bytes.begin(), bytes.end());
  }
  out.resize(RoundUp(out.size(), 8));
  return out;
}

// Puts a new table of snapshots into the file, and the header to it: from then on it is the one.
Task<Result<void>> WriteTable(Qcow2Channel& image, const std::vector<Snapshot>& snapshots, uint64_t old_bytes) {
  ImageState& state = image.state();
  std::vector<std::byte> table;
  for (const Snapshot& snapshot : snapshots) {
    const auto entry = Encode(snapshot);
    table.insert(table.end(), entry.begin(), entry.end());
  }
  if (table.size() > kMaxSnapshotTableBytes || snapshots.size() > kMaxSnapshots) {
    co_return Error{EFBIG, "the image has too many snapshots"};
  }
  const uint64_t old_offset = state.header.snapshots_offset;
  uint64_t offset = 0;
  if (!table.empty()) {
    Result<Allocation> place =
        co_await image.refcounts().AllocateExactly(DivideUp(table.size(), state.cluster_bytes()));
    if (!place.ok()) co_return place.error();
    offset = place->offset;
    Buffer bytes(place->clusters * state.cluster_bytes());
    std::memset(bytes.data(), 0, bytes.size());
    std::memcpy(bytes.data(), table.data(), table.size());
    const int error = co_await device::WriteTo(state.file, offset, bytes.data(), bytes.size());
    if (error != 0) co_return ErrnoError(error, "writing the table of snapshots");
    state.tables.Add(offset >> state.layout().cluster_bits, place->clusters);
  }
  Result<void> done = co_await image.checkpointer().Run();
  if (!done.ok()) co_return done;
  state.header.snapshot_count = static_cast<uint32_t>(snapshots.size());
  state.header.snapshots_offset = offset;
  done = co_await WriteHeaderSector(state);
  if (!done.ok()) co_return done;
  if (old_bytes != 0) {
    const uint64_t clusters = DivideUp(old_bytes, state.cluster_bytes());
    state.tables.Remove(old_offset >> state.layout().cluster_bits, clusters);
    image.checkpointer().Free(old_offset, clusters);
  }
  co_return Result<void>();
}

Task<Result<WholeTable>> ReadL1(ImageState& state, const Snapshot& snapshot) {
  WholeTable table;
  table.offset = snapshot.l1_offset;
  Result<std::vector<uint64_t>> entries = co_await ReadEntries(state, snapshot.l1_offset, snapshot.l1_entries);
  if (!entries.ok()) co_return entries.error();
  table.entries = std::move(*entries);
  co_return table;
}

// One more or one less reference for everything that a first-level table leads to.
Task<Result<void>> CountAll(Qcow2Channel& image, const std::vector<uint64_t>& l1, bool up) {
  ImageState& state = image.state();
  const auto count = [&](uint64_t offset, uint64_t clusters) {
    return up ? image.refcounts().Increment(offset, clusters) : image.refcounts().Decrement(offset, clusters);
  };
  for (const uint64_t entry : l1) {
    const uint64_t table = entry & kOffsetMask;
    if (table == 0) continue;
    Result<std::vector<uint64_t>> entries = co_await ReadEntries(state, table, state.layout().l2_entries());
    if (!entries.ok()) co_return entries.error();
    for (const uint64_t cluster : *entries) {
      const ClusterRange range = RangeOf(cluster, state.layout());
      if (range.clusters == 0) continue;
      Result<void> counted = co_await count(range.offset, range.clusters);
      if (!counted.ok()) co_return counted;
    }
    Result<void> counted = co_await count(table, 1);
    if (!counted.ok()) co_return counted;
  }
  co_return Result<void>();
}

// Before anything is changed for it: whether what a first-level table leads to can be counted.
Result<void> AffordsCounting(ImageState& state, const std::vector<uint64_t>& l1) {
  const auto named = std::count_if(l1.begin(), l1.end(), [](uint64_t entry) { return (entry & kOffsetMask) != 0; });
  return state.work.Affords(static_cast<uint64_t>(named) * state.layout().l2_entries());
}

std::vector<Snapshot>::iterator FindSnapshot(std::vector<Snapshot>& snapshots, const std::string& which) {
  const auto by_id = std::find_if(snapshots.begin(), snapshots.end(), [&](const Snapshot& s) { return s.id == which; });
  if (by_id != snapshots.end()) return by_id;
  return std::find_if(snapshots.begin(), snapshots.end(), [&](const Snapshot& s) { return s.name == which; });
}

// A first-level table that becomes the disk's leads to second-level tables, each once, that are nothing else.
Result<void> CheckUsable(const ImageState& state, const Snapshot& snapshot, std::vector<uint64_t> entries) {
  if (snapshot.disk_bytes % kSectorBytes != 0 || snapshot.l1_entries < state.layout().L1Entries(snapshot.disk_bytes)) {
    return Error{EINVAL, "the snapshot's disk of " + std::to_string(snapshot.disk_bytes) + " bytes cannot be"};
  }
  std::vector<uint64_t> active;
  for (const uint64_t entry : state.l1.entries) active.push_back(entry & kOffsetMask);
  std::sort(active.begin(), active.end());
  for (uint64_t& entry : entries) entry &= kOffsetMask;
  std::sort(entries.begin(), entries.end());
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i] == 0) continue;
    const bool twice = i + 1 < entries.size() && entries[i] == entries[i + 1];
    const bool other = state.tables.Overlaps(entries[i] >> state.layout().cluster_bits, 1) &&
                       !std::binary_search(active.begin(), active.end(), entries[i]);
    if (twice || other || (entries[i] & state.layout().cluster_mask()) != 0) {
      return Error{EINVAL, "the snapshot's tables lie on others; see `bulkhead img check`"};
    }
  }
  return {};
}

Error Unknown(const std::string& which) { return {ENOENT, "it has no snapshot '" + which + "'"}; }

// Between its parts such a change leaves refcounts and flags that differ: until it is done the image says so.
Task<Result<void>> SetDirty(ImageState& state, bool dirty) {
  if (state.header.version < 3) co_return Result<void>();
  state.header.incompatible = dirty ? state.header.incompatible | kDirty : state.header.incompatible & ~kDirty;
  Result<void> written = co_await WriteHeaderSector(state);
  co_return written;
}

// Where such a change stopped, what it counted already counts too much: a full disk must not leave an image that nobody
// may open.
Task<Result<void>> OrRepair(Qcow2Channel& image, Result<void> done) {
  if (done.ok()) co_return done;
  Result<void> settled = co_await image.checkpointer().Settle();
  if (settled.ok()) (void)co_await Check(image, Repair::kAll);
  co_return done;
}

}  // namespace

Task<Result<SnapshotTable>> ReadSnapshots(ImageState& state) {
  SnapshotTable table;
  TableReader reader(state);
  for (uint32_t i = 0; i < state.header.snapshot_count; ++i) {
    Result<std::vector<std::byte>> fixed = co_await reader.Take(kFixedBytes);
    if (!fixed.ok()) co_return fixed.error();
    Snapshot snapshot;
    snapshot.l1_offset = LoadBe64(fixed->data());
    snapshot.l1_entries = LoadBe32(fixed->data() + 8);
    const size_t id_bytes = LoadBe16(fixed->data() + 12);
    const size_t name_bytes = LoadBe16(fixed->data() + 14);
    snapshot.date_sec = LoadBe32(fixed->data() + 16);
    snapshot.date_nsec = LoadBe32(fixed->data() + 20);
    snapshot.vm_clock_ns = LoadBe64(fixed->data() + 24);
    snapshot.vm_state_bytes = LoadBe32(fixed->data() + 32);
    const size_t extra_bytes = LoadBe32(fixed->data() + 36);
    const bool possible =
        extra_bytes <= kMaxSnapshotExtraBytes && (snapshot.l1_offset & state.layout().cluster_mask()) == 0 &&
        uint64_t{snapshot.l1_entries} * sizeof(uint64_t) <= kMaxL1Bytes && snapshot.l1_offset < kMaxFileBytes;
    if (!possible) co_return Error{EINVAL, "its snapshot number " + std::to_string(i) + " has values that cannot be"};
    Result<std::vector<std::byte>> extra = co_await reader.Take(extra_bytes);
    if (!extra.ok()) co_return extra.error();
    snapshot.disk_bytes = state.header.size_bytes;
    if (extra_bytes >= 8) snapshot.vm_state_bytes = LoadBe64(extra->data());
    if (extra_bytes >= kKnownExtraBytes) {
      snapshot.disk_bytes = LoadBe64(extra->data() + 8);
      snapshot.more.assign(extra->begin() + kKnownExtraBytes, extra->end());
    }
    const size_t entry_bytes = kFixedBytes + extra_bytes + id_bytes + name_bytes;
    Result<std::vector<std::byte>> names =
        co_await reader.Take(id_bytes + name_bytes + (RoundUp(entry_bytes, 8) - entry_bytes));
    if (!names.ok()) co_return names.error();
    snapshot.id = Text(std::span(*names).first(id_bytes));
    snapshot.name = Text(std::span(*names).subspan(id_bytes, name_bytes));
    table.snapshots.push_back(std::move(snapshot));
  }
  table.size_bytes = reader.taken();
  co_return table;
}

namespace {

struct FoundSnapshot {
  Snapshot snapshot;
  std::vector<uint64_t> l1;
};

Task<Result<FoundSnapshot>> ReadSnapshot(ImageState& state, std::string which) {
  Result<SnapshotTable> table = co_await ReadSnapshots(state);
  if (!table.ok()) co_return table.error();
  const auto snapshot = FindSnapshot(table->snapshots, which);
  if (snapshot == table->snapshots.end()) co_return Unknown(which);
  Result<WholeTable> l1 = co_await ReadL1(state, *snapshot);
  if (!l1.ok()) co_return l1.error();
  co_return FoundSnapshot{std::move(*snapshot), std::move(l1->entries)};
}

Task<Result<void>> AddSnapshot(Qcow2Channel& image, SnapshotTable table, Snapshot snapshot) {
  ImageState& state = image.state();
  Result<void> done = co_await CountAll(image, state.l1.entries, true);
  if (done.ok()) done = co_await UpdateCopied(image);
  if (!done.ok()) co_return done;
  Result<uint64_t> place = co_await WriteL1(image, state.l1.entries);
  if (!place.ok()) co_return place.error();
  snapshot.l1_offset = *place;
  table.snapshots.push_back(std::move(snapshot));
  done = co_await WriteTable(image, table.snapshots, table.size_bytes);
  if (done.ok()) done = co_await image.checkpointer().Settle();
  if (done.ok()) done = co_await SetDirty(state, false);
  co_return done;
}

Task<Result<void>> BecomeSnapshot(Qcow2Channel& image, std::vector<uint64_t> entries, uint64_t disk_bytes) {
  ImageState& state = image.state();
  Result<void> done = co_await CountAll(image, entries, true);
  if (!done.ok()) co_return done;
  for (uint64_t& entry : entries) entry &= kOffsetMask;
  const std::vector<uint64_t> old_entries = state.l1.entries;
  done = co_await ReplaceL1(image, std::move(entries), disk_bytes);
  if (done.ok()) done = co_await CountAll(image, old_entries, false);
  if (done.ok()) done = co_await UpdateCopied(image);
  if (done.ok()) done = co_await image.checkpointer().Settle();
  if (done.ok()) done = co_await SetDirty(state, false);
  co_return done;
}

// `table` is the one without it.
Task<Result<void>> RemoveSnapshot(Qcow2Channel& image, SnapshotTable table, Snapshot snapshot,
                                  std::vector<uint64_t> entries) {
  ImageState& state = image.state();
  Result<void> done = co_await WriteTable(image, table.snapshots, table.size_bytes);
  // What only it referred to.
  if (done.ok()) done = co_await CountAll(image, entries, false);
  if (done.ok() && snapshot.l1_entries != 0) {
    const uint64_t clusters = DivideUp(uint64_t{snapshot.l1_entries} * sizeof(uint64_t), state.cluster_bytes());
    done = co_await image.refcounts().Decrement(snapshot.l1_offset, clusters);
  }
  if (done.ok()) done = co_await UpdateCopied(image);
  if (done.ok()) done = co_await image.checkpointer().Settle();
  if (done.ok()) done = co_await SetDirty(state, false);
  co_return done;
}

}  // namespace

Task<Result<void>> ShowSnapshot(Qcow2Channel& image, std::string which) {
  ImageState& state = image.state();
  if (!state.read_only) co_return Error{EINVAL, "a snapshot is shown only of an image that is read only"};
  Result<FoundSnapshot> found = co_await ReadSnapshot(state, std::move(which));
  if (!found.ok()) co_return found.error();
  if (auto usable = CheckUsable(state, found->snapshot, found->l1); !usable.ok()) co_return usable;
  for (uint64_t& entry : found->l1) entry &= kOffsetMask;
  state.l1.offset = found->snapshot.l1_offset;
  state.l1.entries = std::move(found->l1);
  state.header.size_bytes = found->snapshot.disk_bytes;
  co_return Result<void>();
}

Task<Result<void>> CreateSnapshot(Qcow2Channel& image, std::string name, int64_t now_ns) {
  ImageState& state = image.state();
  Result<SnapshotTable> table = co_await ReadSnapshots(state);
  if (!table.ok()) co_return table.error();
  if (name.size() > UINT16_MAX) co_return Error{EINVAL, "the name is longer than 65535 bytes"};
  uint64_t last_id = 0;
  for (const Snapshot& other : table->snapshots) {
    last_id = std::max<uint64_t>(last_id, std::strtoull(other.id.c_str(), nullptr, 10));
  }
  Snapshot snapshot;
  snapshot.id = std::to_string(last_id + 1);
  snapshot.name = std::move(name);
  snapshot.l1_entries = static_cast<uint32_t>(state.l1.entries.size());
  snapshot.date_sec = static_cast<uint32_t>(now_ns / 1'000'000'000);
  snapshot.date_nsec = static_cast<uint32_t>(now_ns % 1'000'000'000);
  snapshot.disk_bytes = state.header.size_bytes;
  // What is counted is read past the cache.
  Result<void> done = co_await image.checkpointer().Settle();
  if (done.ok()) done = AffordsCounting(state, state.l1.entries);
  if (done.ok()) done = co_await SetDirty(state, true);
  if (!done.ok()) co_return done;
  done = co_await AddSnapshot(image, std::move(*table), std::move(snapshot));
  done = co_await OrRepair(image, std::move(done));
  co_return done;
}

Task<Result<void>> ApplySnapshot(Qcow2Channel& image, std::string which) {
  ImageState& state = image.state();
  Result<FoundSnapshot> found = co_await ReadSnapshot(state, std::move(which));
  if (!found.ok()) co_return found.error();
  // What is counted is read past the cache, and nothing that was given up before may come back.
  Result<void> done = co_await image.checkpointer().Settle();
  if (done.ok()) done = CheckUsable(state, found->snapshot, found->l1);
  if (done.ok()) done = AffordsCounting(state, found->l1);
  if (done.ok()) done = co_await SetDirty(state, true);
  if (!done.ok()) co_return done;
  done = co_await BecomeSnapshot(image, found->l1, found->snapshot.disk_bytes);
  done = co_await OrRepair(image, std::move(done));
  co_return done;
}

Task<Result<void>> DeleteSnapshot(Qcow2Channel& image, std::string which) {
  ImageState& state = image.state();
  Result<SnapshotTable> table = co_await ReadSnapshots(state);
  if (!table.ok()) co_return table.error();
  const auto found = FindSnapshot(table->snapshots, which);
  if (found == table->snapshots.end()) co_return Unknown(which);
  const Snapshot snapshot = *found;
  Result<WholeTable> l1 = co_await ReadL1(state, snapshot);
  if (!l1.ok()) co_return l1.error();
  table->snapshots.erase(found);
  Result<void> done = co_await image.checkpointer().Settle();
  if (done.ok()) done = AffordsCounting(state, l1->entries);
  if (done.ok()) done = co_await SetDirty(state, true);
  if (!done.ok()) co_return done;
  done = co_await RemoveSnapshot(image, std::move(*table), snapshot, l1->entries);
  done = co_await OrRepair(image, std::move(done));
  co_return done;
}

}  // namespace bulkhead::qcow2
