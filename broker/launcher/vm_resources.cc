// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/vm_resources.h"

#include <unistd.h>

#include <cstdio>

#include "broker/launcher/cloud_init.h"
#include "broker/launcher/vhost_net.h"
#include "ipc/rpc.h"

namespace bulkhead::launcher {

using Kind = StreamOption::Kind;

namespace {

OpenNet OpenUser(const NetOption& net) {
  constexpr uint16_t kEthernetMtu = 1500;
  return {.queues = {}, .name = "", .mtu = net.mtu != 0 ? net.mtu : kEthernetMtu, .user = OpenUserNetwork(net.user)};
}

}  // namespace

VmResources::VmResources(const RunOptions& options) {
  CheckHostMemory(options.memory_bytes);
  kernel_ = OpenSource("kernel", options.kernel);
  if (!options.initrd.empty()) initrd_ = OpenSource("initrd", options.initrd);
  disks_ = OpenDisks(options.disks);
  for (const OpenDisk& disk : disks_) {
    locks_.Add(disk.image.file);
    for (const OpenImage& backing : disk.backing) locks_.Add(backing.file);
  }
  if (options.cloud_init) cloud_init_ = MakeCloudInitDisk(*options.cloud_init);
  for (const NetOption& net : options.nets) {
    if (net.vhost) OpenVhostNet("--net");
    nets_.push_back(net.kind == NetOption::Kind::kUser ? OpenUser(net) : OpenTap(net, options.cpus));
  }
  serial_ = OpenStream("the serial port", options.console);
  if (options.virtio_console) virtio_console_ = OpenStream("the virtio console", *options.virtio_console);
  if (options.debug_console.kind == Kind::kStdio) debug_output_ = debug_.emplace().TakeGuestEnd();
  if (options.debug_console.kind == Kind::kFile) debug_output_ = OpenOutput(options.debug_console.path);
}

VmResources::~VmResources() {
  for (const std::string& path : socket_paths_) ::unlink(path.c_str());
}

VmResources::Stream VmResources::OpenStream(const char* what, const StreamOption& option) {
  Stream stream;
  switch (option.kind) {
    case Kind::kNone:
      break;
    case Kind::kStdio:
      stream.input_output = terminal_.emplace().TakeGuestEnd();
      break;
    case Kind::kPty: {
      Pty& pty = ptys_.emplace_back(OpenPty());
      std::fprintf(stderr, "bulkhead: %s is at %s\n", what, pty.path.c_str());
      stream.input_output = std::move(pty.master);
      break;
    }
    case Kind::kUnix:
      stream.listener = ListenAt(option.path);
      socket_paths_.push_back(option.path);
      break;
    case Kind::kFile:
      stream.output = OpenOutput(option.path);
      break;
  }
  return stream;
}

void VmResources::Stream::Fill(control::StreamConfig::Builder out) const {
  if (input_output.valid()) {
    out.setInput(ShareFile(input_output.get()));
    out.setOutput(ShareFile(input_output.get()));
  }
  if (output.valid()) out.setOutput(ShareFile(output.get()));
  if (listener.valid()) out.setListener(ShareFile(listener.get()));
}

namespace {

control::ImageFormat FormatOf(DiskFormat format) {
  switch (format) {
    case DiskFormat::kQcow2:
      return control::ImageFormat::QCOW2;
    case DiskFormat::kQcow:
      return control::ImageFormat::QCOW;
    case DiskFormat::kRaw:
      break;
  }
  return control::ImageFormat::RAW;
}

// A disk's own file or one below it.
template <typename Option, typename Config>
void FillImage(const Option& option, const OpenImage& image, Config out) {
  out.setFile(ShareFile(image.file.get()));
  out.setName(option.path);
  out.setFormat(FormatOf(option.format));
  out.setDirectIo(image.direct_io);
  out.setBlockDevice(image.block_device);
}

void FillDisk(const DiskOption& option, const OpenDisk& disk, control::DiskConfig::Builder out) {
  FillImage(option, disk.image, out);
  out.setReadOnly(option.read_only);
  out.setSerial(option.id);
  out.setQueues(option.queues);
  FillThrottle(option.throttle, out.initThrottle());
  auto backing = out.initBacking(static_cast<unsigned>(disk.backing.size()));
  for (unsigned i = 0; i < disk.backing.size(); ++i) FillImage(option.backing[i], disk.backing[i], backing[i]);
}

capnp::Data::Reader DataOf(const std::vector<uint8_t>& bytes) { return {bytes.data(), bytes.size()}; }

void FillNet(const RunOptions& options, unsigned index, const OpenNet& net, control::NetConfig::Builder out) {
  const NetOption& option = options.nets[index];
  auto taps = out.initTaps(static_cast<unsigned>(net.queues.size()));
  for (unsigned i = 0; i < net.queues.size(); ++i) taps.set(i, ShareFile(net.queues[i].get()));
  out.setName(net.name);
  const std::string name = option.id.empty() ? std::to_string(index) : option.id;
  out.setMac(DataOf(option.mac.empty() ? DefaultMac(options.name, name) : option.mac));
  out.setMtu(net.mtu);
  out.setAnyMac(option.any_mac);
  auto addresses = out.initIpAddresses(static_cast<unsigned>(option.addresses.size()));
  for (unsigned i = 0; i < addresses.size(); ++i) addresses.set(i, DataOf(option.addresses[i]));
  FillThrottle(option.throttle, out.initThrottle());
  out.setLinkDown(!option.link_on);
  if (option.vhost) out.setVhost(MakeVhostNetSource());
  if (!net.user) return;
  FillUserNet(option.user, *net.user, net.mtu, out.initUser());
  auto listeners = out.initListeners(static_cast<unsigned>(net.user->listeners.size()));
  for (unsigned i = 0; i < listeners.size(); ++i) listeners.set(i, ShareFile(net.user->listeners[i].get()));
}

}  // namespace

void FillThrottle(const ThrottleOption& option, control::DiskThrottle::Builder out) {
  out.setBytesPerSecond(option.bytes_per_second);
  out.setBytesBurst(option.bytes_burst);
  out.setOperationsPerSecond(option.operations_per_second);
  out.setOperationsBurst(option.operations_burst);
}

void VmResources::Fill(const RunOptions& options, const RuntimeDir& directory, control::VmConfig::Builder out) const {
  out.setName(options.name);
  out.setMemoryBytes(options.memory_bytes);
  out.setVcpuCount(options.cpus);
  out.setKernel(ShareFile(kernel_.get()));
  out.setKernelName(options.kernel);
  if (initrd_.valid()) {
    out.setInitrd(ShareFile(initrd_.get()));
    out.setInitrdName(options.initrd);
  }
  out.setCommandLine(options.append);
  const auto count = static_cast<unsigned>(disks_.size());
  auto configs = out.initDisks(count + (cloud_init_ ? 1 : 0));
  for (unsigned i = 0; i < count; ++i) FillDisk(options.disks[i], disks_[i], configs[i]);
  // The last, so that the user's own keep their names.
  if (cloud_init_) {
    DiskOption option;
    option.path = "for cloud-init";
    option.read_only = true;
    option.id = "cloud-init";
    option.queues = 1;
    FillDisk(option, *cloud_init_, configs[count]);
  }
  auto nets = out.initNets(static_cast<unsigned>(nets_.size()));
  for (unsigned i = 0; i < nets_.size(); ++i) FillNet(options, i, nets_[i], nets[i]);
  serial_.Fill(out.initSerial());
  if (options.virtio_console) virtio_console_.Fill(out.initVirtioConsole());
  if (debug_output_.valid()) out.setDebugConsole(ShareFile(debug_output_.get()));
  out.setKeepOnDeviceFailure(options.keep_on_device_failure);
  out.setExitDeadlineMs(options.exit_deadline_ms);
  out.setDeviceRestarts(options.device_restarts);
  out.setRuntimeDir(directory.path());
  out.setFirstUid(options.first_uid);
  out.setUidCount(options.uid_count);
  out.setRequireFullSandbox(options.require_full_sandbox);
  auto limits = out.initLimits();
  limits.setMemoryBytes(options.limits.memory_bytes);
  limits.setCpuThousandths(options.limits.cpu_thousandths);
  limits.setTasks(options.limits.tasks);
  limits.setIoBytesPerSecond(options.limits.io_bytes_per_second);
}

void VmResources::CloseGuestEnds() {
  serial_ = {};
  virtio_console_ = {};
  debug_output_.Close();
}

}  // namespace bulkhead::launcher
