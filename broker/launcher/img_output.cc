// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/img_output.h"

#include <fmt/format.h>

#include <ctime>

#include "broker/launcher/img_session.h"

namespace bulkhead::launcher {
namespace {

using Format = control::ImageGrant::Format;

const char* YesNo(bool value) { return value ? "true" : "false"; }

std::string LocalTime(uint32_t seconds) {
  const time_t time = seconds;
  struct tm parts {};
  ::localtime_r(&time, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

std::string Clock(uint64_t ns) {
  const uint64_t ms = ns / 1'000'000;
  return fmt::format("{:02}:{:02}:{:02}.{:03}", ms / 3'600'000, ms / 60'000 % 60, ms / 1000 % 60, ms % 1000);
}

// JSON is UTF-8; what is not becomes a mark.
std::string Utf8(const std::string& text) {
  return nlohmann::json::parse(nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

double Percent(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

const char* FormatName(Format format) {
  switch (format) {
    case Format::QCOW2:
      return "qcow2";
    case Format::QCOW:
      return "qcow";
    default:
      return "raw";
  }
}

std::string HumanSize(uint64_t bytes) {
  static const char* const kUnits[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1000 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.3g} {}B", value, kUnits[unit]);
}

std::string HumanSnapshots(capnp::List<control::ImageSnapshot>::Reader snapshots) {
  std::string out =
      fmt::format("{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
  for (auto snapshot : snapshots) {
    out += fmt::format("{:<9} {:<16} {:>8}{:>20}{:>13}{:>11}\n", Plain(snapshot.getId()), Plain(snapshot.getName()),
                       HumanSize(snapshot.getVmStateBytes()), LocalTime(snapshot.getDateSec()),
                       Clock(snapshot.getVmClockNs()), "");
  }
  return out;
}

std::string HumanInfo(const std::string& path, uint64_t disk_bytes, control::ImageInfo::Reader info) {
  std::string out = fmt::format("image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n", path,
                                FormatName(info.getFormat()), HumanSize(info.getVirtualBytes()), info.getVirtualBytes(),
                                HumanSize(disk_bytes));
  if (info.getDirty()) out += "cleanly shut down: no\n";
  if (info.getClusterBytes() != 0) out += fmt::format("cluster_size: {}\n", info.getClusterBytes());
  if (info.getBackingFile().size() != 0) {
    const std::string named = info.getBackingFile();
    const std::string actual = BesideImage(path, named);
    out += "backing file: " + Plain(named) + (actual != named ? " (actual path: " + Plain(actual) + ")" : "") + "\n";
    if (info.getBackingFormat().size() != 0) out += "backing file format: " + Plain(info.getBackingFormat()) + "\n";
  }
  if (info.getSnapshots().size() != 0) out += "Snapshot list:\n" + HumanSnapshots(info.getSnapshots());
  if (info.getFormat() != Format::QCOW2) return out;
  out += fmt::format("Format specific information:\n    compat: {}\n    compression type: {}\n",
                     info.getVersion() == 2 ? "0.10" : "1.1", info.getZstd() ? "zstd" : "zlib");
  if (info.getVersion() == 2) return out + fmt::format("    refcount bits: {}\n", info.getRefcountBits());
  return out + fmt::format("    lazy refcounts: {}\n    refcount bits: {}\n    corrupt: {}\n    extended l2: false\n",
                           YesNo(info.getLazyRefcounts()), info.getRefcountBits(), YesNo(info.getCorrupt()));
}

nlohmann::json JsonInfo(const std::string& path, uint64_t disk_bytes, control::ImageInfo::Reader info) {
  nlohmann::json out{{"filename", path},
                     {"format", FormatName(info.getFormat())},
                     {"virtual-size", info.getVirtualBytes()},
                     {"actual-size", disk_bytes},
                     {"dirty-flag", info.getDirty()}};
  if (info.getClusterBytes() != 0) out["cluster-size"] = info.getClusterBytes();
  if (info.getBackingFile().size() != 0) {
    out["backing-filename"] = Utf8(info.getBackingFile());
    out["full-backing-filename"] = Utf8(BesideImage(path, info.getBackingFile()));
    if (info.getBackingFormat().size() != 0) out["backing-filename-format"] = Utf8(info.getBackingFormat());
  }
  for (auto snapshot : info.getSnapshots()) {
    out["snapshots"].push_back({{"id", Utf8(snapshot.getId())},
                                {"name", Utf8(snapshot.getName())},
                                {"vm-state-size", snapshot.getVmStateBytes()},
                                {"date-sec", snapshot.getDateSec()},
                                {"date-nsec", snapshot.getDateNsec()},
                                {"vm-clock-sec", snapshot.getVmClockNs() / 1'000'000'000},
                                {"vm-clock-nsec", snapshot.getVmClockNs() % 1'000'000'000}});
  }
  if (info.getFormat() == Format::QCOW2) {
    nlohmann::json data{{"compat", info.getVersion() == 2 ? "0.10" : "1.1"},
                        {"compression-type", info.getZstd() ? "zstd" : "zlib"},
                        {"refcount-bits", info.getRefcountBits()}};
    if (info.getVersion() != 2) {
      data["lazy-refcounts"] = info.getLazyRefcounts();
      data["corrupt"] = info.getCorrupt();
      data["extended-l2"] = false;
    }
    out["format-specific"] = {{"type", "qcow2"}, {"data", data}};
  }
  return out;
}

std::string HumanCheck(control::ImageCheck::Reader report, bool repaired) {
  std::string out;
  for (auto message : report.getMessages()) out += Plain(message) + "\n";
  if (repaired && report.getLeaksFixed() + report.getCorruptionsFixed() != 0) {
    out += fmt::format(
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n",
        report.getLeaksFixed(), report.getCorruptionsFixed());
  }
  const uint64_t corruptions =
      report.getCorruptions() - std::min(report.getCorruptions(), report.getCorruptionsFixed());
  const uint64_t leaks = report.getLeaks() - std::min(report.getLeaks(), report.getLeaksFixed());
  if (corruptions == 0 && leaks == 0) out += "No errors were found on the image.\n";
  if (corruptions != 0) {
    out += fmt::format(
        "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may "
        "corrupt it.\n",
        corruptions);
  }
  if (leaks != 0) {
    out += fmt::format(
        "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n", leaks);
  }
  const uint64_t total = report.getTotalClusters();
  const uint64_t allocated = report.getAllocatedClusters();
  if (total != 0) {
    out += fmt::format("{}/{} = {:.2f}% allocated, {:.2f}% fragmented, {:.2f}% compressed clusters\n", allocated, total,
                       Percent(allocated, total), Percent(report.getFragmentedClusters(), allocated),
                       Percent(report.getCompressedClusters(), allocated));
  }
  return out + fmt::format("Image end offset: {}\n", report.getImageEnd());
}

nlohmann::json JsonCheck(const std::string& path, const std::string& format, control::ImageCheck::Reader report) {
  nlohmann::json out{{"filename", path},
                     {"format", format},
                     {"check-errors", 0},
                     {"image-end-offset", report.getImageEnd()},
                     {"total-clusters", report.getTotalClusters()},
                     {"allocated-clusters", report.getAllocatedClusters()},
                     {"fragmented-clusters", report.getFragmentedClusters()},
                     {"compressed-clusters", report.getCompressedClusters()}};
  const auto add = [&](const char* name, uint64_t count) {
    if (count != 0) out[name] = count;
  };
  add("leaks", report.getLeaks() - std::min(report.getLeaks(), report.getLeaksFixed()));
  add("corruptions", report.getCorruptions() - std::min(report.getCorruptions(), report.getCorruptionsFixed()));
  add("leaks-fixed", report.getLeaksFixed());
  add("corruptions-fixed", report.getCorruptionsFixed());
  return out;
}

}  // namespace bulkhead::launcher
