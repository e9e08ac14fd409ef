// SPDX-License-Identifier: Apache-2.0
// What the broker decides to give a device process, before anything is created: one plan per process, made by its
// kind's planner from the VM's configuration. The configuration comes from the launcher: hostile. Main thread.
#pragma once

#include <capnp/message.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ipc/broker.capnp.h"
#include "ipc/fd.h"

namespace bulkhead::broker {

struct PlannedRegion {
  enum class Kind { kPort, kConfig, kBar0 };
  Kind kind;
  uint16_t number;  // first port, or index of the function
  uint64_t size_bytes;
};

struct PlannedFunction {
  uint8_t slot = 0;
  uint64_t bar0_address = 0;
  uint16_t queues = 0;
  uint16_t vectors = 0;
};

struct PlannedLine {
  uint32_t gsi = 0;
  bool level = false;
};

struct PlannedListener {
  uint8_t port = 0;  // of the console process
  OwnFd socket;
};

// One end of a packet link between two processes.
struct PlannedPackets {
  OwnFd memory;
  OwnFd doorbell;  // wakes the process
  OwnFd peer;      // wakes the other
};

// What a process is limited to by its cgroup.
struct PlannedLimits {
  uint64_t memory_bytes = uint64_t{128} << 20;  // of its own, beside guest memory; most heaps have 32 MiB
  uint32_t threads = 2;                         // that it makes: the control plane's and the device's
  uint32_t kernel_threads = 2;                  // that the kernel may make on its behalf
  bool counts_io = false;                       // its files are images, whose throughput can be limited
};

struct DevicePlan {
  std::string name;        // "disk0": in process lists, logs and `inspect`
  std::string executable;  // file name in the directory of Bulkhead's helpers
  std::vector<PlannedRegion> regions;
  std::vector<PlannedFunction> functions;
  std::vector<PlannedLine> lines;
  std::vector<OwnFd> files;
  // Of files that each process gets its own of, after `files`: kernel objects that must end with it.
  std::vector<control::FileSource::Client> sources;
  std::vector<OwnFd> given_away;  // the next one's, from OpenSources until then
  std::unique_ptr<capnp::MallocMessageBuilder> settings;
  bool uses_guest_memory = false;
  bool kernel_writes = false;  // to guest memory, in its place (vhost)
  bool controls_machine = false;
  bool takes_power_button = false;
  bool takes_throttle = false;
  bool has_link = false;       // it is a network interface
  bool keeps_network = false;  // the host's network namespace instead of an empty one
  // Whether another takes its place when its process ends.
  enum class Replacement { kNever, kAlways };
  Replacement replacement = Replacement::kNever;
  bool journals_tables = false;  // of an image
  unsigned outputs = 0;          // streams that it writes, each of which gets a stage (ipc/counted_output.h)
  std::optional<PlannedPackets> packets;
  std::string outside_of;  // the process whose packets it carries; neither is of use without the other
  PlannedLimits limits;
  std::vector<PlannedListener> listeners;  // the broker accepts and attaches the connections

  kj::Promise<void> OpenSources();

  // The others have no exit ring, and the runner does not know of them.
  bool reached_by_guest() const { return !regions.empty(); }
};

// Hands out what may be given only once per VM.
class Planner {
 public:
  explicit Planner(control::VmConfig::Reader config, kj::WaitScope& wait) : config_(config), wait_(wait) {}

  control::VmConfig::Reader config() const { return config_; }
  kj::WaitScope& wait() { return wait_; }

  DevicePlan& Add(std::string name, std::string executable);
  // A PCI function in the next free slot, with its configuration space as the plan's next region.
  PlannedFunction& AddFunction(DevicePlan& plan, uint16_t queues, uint16_t vectors);
  // The same with the virtio-pci BAR as the region after it, and a vector per queue and one for configuration changes.
  void AddVirtioFunction(DevicePlan& plan, uint16_t queues);
  void AddPort(DevicePlan& plan, uint16_t first, uint16_t count);

  // Those that the guest reaches come first: the runner counts no others.
  std::vector<std::unique_ptr<DevicePlan>> Take();

 private:
  control::VmConfig::Reader config_;
  kj::WaitScope& wait_;
  std::vector<std::unique_ptr<DevicePlan>> plans_;
  uint8_t next_slot_ = 0;
};

// One planner per device kind, in broker/plans/.
void PlanChipset(Planner& planner);
void PlanConsole(Planner& planner);
void PlanDisks(Planner& planner);
void PlanNets(Planner& planner);
void PlanRng(Planner& planner);

// All kinds; the chipset first, since the host bridge is function 00.0.
std::vector<std::unique_ptr<DevicePlan>> PlanDevices(control::VmConfig::Reader config, kj::WaitScope& wait);

}  // namespace bulkhead::broker
