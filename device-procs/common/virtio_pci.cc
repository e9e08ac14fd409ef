// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/virtio_pci.h"

#include <kj/exception.h>
#include <sys/epoll.h>

#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "ipc/platform.h"

namespace bulkhead::device {
namespace {

namespace layout = virtio_pci;

constexpr uint16_t kVendorVirtio = 0x1AF4;
constexpr uint16_t kDeviceIdBase = 0x1040;  // §4.1.2.1
constexpr uint8_t kRevisionModern = 1;
constexpr uint16_t kNoVector = 0xFFFF;

// Device status bits (§2.1).
constexpr uint8_t kDriverOk = 4;
constexpr uint8_t kFeaturesOk = 8;
constexpr uint8_t kNeedsReset = 64;

constexpr uint8_t kIsrQueue = 1;
constexpr uint8_t kIsrConfig = 2;

constexpr uint64_t kFeatureIndirect = FeatureBit(28);
constexpr uint64_t kFeatureEventIndex = FeatureBit(29);
constexpr uint64_t kFeatureVersion1 = FeatureBit(32);

// Capabilities (§4.1.4; PCIe 4.0 §7.5.3, §7.7.2).
constexpr uint8_t kCapabilityVendor = 0x09;
constexpr uint8_t kCapabilityPcie = 0x10;
constexpr uint8_t kCapabilityMsix = 0x11;
enum StructureType : uint8_t { kCommon = 1, kNotify = 2, kIsr = 3, kDevice = 4, kWindow = 5 };

constexpr uint64_t kCommonBytes = 64;
constexpr uint16_t kStateVersion = 1;

// Common configuration structure (§4.1.4.3).
enum CommonField : uint64_t {
  kDeviceFeatureSelect = 0x00,
  kDeviceFeature = 0x04,
  kDriverFeatureSelect = 0x08,
  kDriverFeature = 0x0C,
  kConfigVector = 0x10,
  kNumQueues = 0x12,
  kStatus = 0x14,
  kConfigGeneration = 0x15,
  kQueueSelect = 0x16,
  kQueueSize = 0x18,
  kQueueVector = 0x1A,
  kQueueEnable = 0x1C,
  kQueueNotifyOffset = 0x1E,
  kQueueDescriptors = 0x20,
  kQueueDriver = 0x28,
  kQueueDevice = 0x30,
};

bool Inside(uint64_t offset, uint64_t base, uint64_t size) { return offset >= base && offset - base < size; }

template <typename T>
void Put(std::array<std::byte, kCommonBytes>& bytes, uint64_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

// The body of a virtio_pci_cap after id and next pointer.
std::vector<uint8_t> StructureCapability(StructureType type, uint64_t offset, uint64_t length,
                                         uint8_t extra_bytes = 0) {
  std::vector<uint8_t> body{static_cast<uint8_t>(16 + extra_bytes), type, 0, 0, 0, 0};
  for (const uint64_t value : {offset, length}) {
    for (unsigned i = 0; i < 4; ++i) body.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
  body.resize(body.size() + extra_bytes);
  return body;
}

// Half or all of a 64-bit register, written with 4 or 8 bytes.
void WriteAddress(Gpa& address, uint64_t offset, uint8_t width, uint64_t value) {
  if (width == 8 && offset == 0) {
    address.value = value;
  } else if (width == 4) {
    const unsigned shift = offset == 0 ? 0 : 32;
    address.value = (address.value & ~(uint64_t{0xFFFF'FFFF} << shift)) | value << shift;
  }
}

}  // namespace

VirtioPci::VirtioPci(std::unique_ptr<VirtioDevice> device, EventLoop& loop, const GuestMemory& memory,
                     FunctionResources resources, Recorder& recorder)
    : device_(std::move(device)),
      loop_(loop),
      memory_(memory),
      recorder_(recorder),
      kicks_(std::move(resources.kicks)),
      msix_(std::move(resources.interrupts)),
      config_space_({.vendor_id = kVendorVirtio,
                     .device_id = static_cast<uint16_t>(kDeviceIdBase + device_->Type()),
                     .revision = kRevisionModern,
                     .class_code = device_->PciClass(),
                     .subsystem_vendor_id = kVendorVirtio,
                     .subsystem_id = static_cast<uint16_t>(kDeviceIdBase + device_->Type())},
                    layout::kBarSize, resources.bar0_address),
      queues_(device_->QueueCount()) {
  if (kicks_.size() != queues_.size() || msix_.vector_count() == 0 || msix_.vector_count() > layout::kMaxVectors) {
    throw FatalError("virtio device: the grants do not fit its queues");
  }
  if (recorder_.on() && (!recorder_.Log(queues_.size() - 1) || device_->QueueMaxSize() > kJournalQueueEntries)) {
    throw FatalError("virtio device: its journal has no room for its queues");
  }
  BuildConfigSpace();
  Reset();
  if (device_->OwnsKicks()) return;
  for (uint16_t i = 0; i < queues_.size(); ++i) {
    loop_.Watch(kicks_[i].get(), EPOLLIN, [this, i] { Kicked(i); });
  }
}

VirtioPci::~VirtioPci() {
  if (active_) device_->Deactivate();
  if (device_->OwnsKicks()) return;
  for (const OwnFd& kick : kicks_) loop_.Unwatch(kick.get());
}

void VirtioPci::BuildConfigSpace() {
  // PCI Express capability (PCIe 4.0 §7.5.3): version 2, root complex integrated endpoint; nothing optional but
  // role-based error reporting, which every function must claim.
  std::array<uint8_t, 0x3A> express{};
  express[0] = 0x92;
  express[3] = 0x80;
  config_space_.AddCapability(kCapabilityPcie, express);

  const uint16_t last_vector = msix_.vector_count() - 1;
  const auto table = static_cast<uint32_t>(layout::kMsixTable);
  const auto pending = static_cast<uint32_t>(layout::kMsixPba);
  std::array<uint8_t, 10> msix{static_cast<uint8_t>(last_vector), static_cast<uint8_t>(last_vector >> 8)};
  std::memcpy(msix.data() + 2, &table, sizeof table);  // both in BAR 0: indicator bits 2..0 are zero
  std::memcpy(msix.data() + 6, &pending, sizeof pending);
  const std::array<uint8_t, 2> msix_writable{0, 0xC0};
  msix_capability_ = config_space_.AddCapability(kCapabilityMsix, msix, msix_writable);

  const auto add = [&](const std::vector<uint8_t>& body) { config_space_.AddCapability(kCapabilityVendor, body); };
  add(StructureCapability(kCommon, layout::kCommonConfig, kCommonBytes));
  add(StructureCapability(kIsr, layout::kIsr, 1));
  add(StructureCapability(kDevice, layout::kDeviceConfig, layout::kMsixTable - layout::kDeviceConfig));
  auto notify = StructureCapability(kNotify, layout::kNotify, layout::kBarSize - layout::kNotify, 4);
  notify[14] = layout::kNotifyMultiplier;
  add(notify);
  // The window into BAR 0 through configuration space (§4.1.4.9): bar, offset, length and data are the driver's.
  const auto window = StructureCapability(kWindow, 0, 0, 4);
  std::array<uint8_t, 18> window_writable{};
  window_writable[2] = 0xFF;
  for (size_t i = 6; i < window_writable.size(); ++i) window_writable[i] = 0xFF;
  window_capability_ = config_space_.AddCapability(kCapabilityVendor, window, window_writable);
}

uint64_t VirtioPci::Read(uint16_t region, uint64_t offset, uint8_t width) {
  return region == kConfigSpace ? ReadConfigSpace(offset, width) : ReadBar(offset, width);
}

WriteEffect VirtioPci::Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) {
  return region == kConfigSpace ? WriteConfigSpace(offset, width, value) : WriteBar(offset, width, value);
}

bool VirtioPci::WindowTarget(uint64_t* offset, uint8_t* width) const {
  const uint64_t window_offset = config_space_.Word32(window_capability_ + 8u);
  const uint32_t window_length = config_space_.Word32(window_capability_ + 12u);
  const bool length_ok = window_length == 1 || window_length == 2 || window_length == 4;
  if (config_space_.Byte(window_capability_ + 4u) != 0 || !length_ok) return false;
  if (window_offset % window_length != 0 || window_offset > layout::kBarSize - window_length) return false;
  *offset = window_offset;
  *width = static_cast<uint8_t>(window_length);
  return true;
}

uint64_t VirtioPci::ReadConfigSpace(uint64_t offset, uint8_t width) {
  uint64_t target;
  uint8_t target_width;
  if (offset == window_capability_ + 16u && WindowTarget(&target, &target_width)) {
    return ReadBar(target, std::min(width, target_width));
  }
  return config_space_.Read(offset, width);
}

WriteEffect VirtioPci::WriteConfigSpace(uint64_t offset, uint8_t width, uint64_t value) {
  const PciDecode before = config_space_.Decode();
  config_space_.Write(offset, width, value);
  uint64_t target;
  uint8_t target_width;
  if (offset == window_capability_ + 16u && WindowTarget(&target, &target_width)) {
    return WriteBar(target, target_width, value & AllOnes(target_width));
  }
  const uint8_t control = config_space_.Byte(msix_capability_ + 3u);
  msix_.SetControl((control & 0x80) != 0, (control & 0x40) != 0);
  InterruptsChanged();
  const PciDecode after = config_space_.Decode();
  WriteEffect effect;
  if (after.memory_enabled != before.memory_enabled || after.bar0_address != before.bar0_address) effect.decode = after;
  return effect;
}

uint64_t VirtioPci::ReadBar(uint64_t offset, uint8_t width) {
  if (Inside(offset, layout::kCommonConfig, kCommonBytes)) return ReadCommon(offset, width);
  if (offset == layout::kIsr) return isr_.exchange(0);  // reading acknowledges (§4.1.4.5)
  if (Inside(offset, layout::kDeviceConfig, layout::kMsixTable - layout::kDeviceConfig)) {
    const auto config = device_->Config();
    const uint64_t at = offset - layout::kDeviceConfig;
    uint64_t value = 0;
    if (at >= config.size()) return 0;
    std::memcpy(&value, config.data() + at, std::min<uint64_t>(width, config.size() - at));
    return value;
  }
  if (Inside(offset, layout::kMsixTable, layout::kMsixPba - layout::kMsixTable)) {
    return msix_.ReadTable(offset - layout::kMsixTable, width);
  }
  if (Inside(offset, layout::kMsixPba, layout::kMsixEnd - layout::kMsixPba)) {
    return msix_.ReadPending(offset - layout::kMsixPba, width);
  }
  return 0;
}

WriteEffect VirtioPci::WriteBar(uint64_t offset, uint8_t width, uint64_t value) {
  WriteEffect effect;
  if (Inside(offset, layout::kCommonConfig, kCommonBytes)) {
    WriteCommon(offset, width, value);
  } else if (Inside(offset, layout::kDeviceConfig, layout::kMsixTable - layout::kDeviceConfig)) {
    const uint64_t at = offset - layout::kDeviceConfig;
    if (at + width <= device_->Config().size()) {
      device_->WriteConfig(at, std::as_bytes(std::span(&value, 1)).first(width));
    }
  } else if (Inside(offset, layout::kMsixTable, layout::kMsixPba - layout::kMsixTable)) {
    effect.route = msix_.WriteTable(offset - layout::kMsixTable, width, value);
    InterruptsChanged();
  } else if (offset >= layout::kNotify) {
    // Most kicks arrive through their eventfd; this one came as an exit.
    const uint64_t index = (offset - layout::kNotify) / layout::kNotifyMultiplier;
    if (index < kicks_.size()) SignalEventFd(kicks_[index].get());
  }
  return effect;
}

uint64_t VirtioPci::OfferedFeatures() const {
  return device_->Features() | kFeatureVersion1 | kFeatureIndirect | kFeatureEventIndex;
}

uint64_t VirtioPci::ReadCommon(uint64_t offset, uint8_t width) const {
  std::array<std::byte, kCommonBytes> bytes{};
  const auto half = [](uint64_t features, uint32_t select) {
    return select < 2 ? static_cast<uint32_t>(features >> (32 * select)) : 0;
  };
  Put(bytes, kDeviceFeatureSelect, device_feature_select_);
  Put(bytes, kDeviceFeature, half(OfferedFeatures(), device_feature_select_));
  Put(bytes, kDriverFeatureSelect, driver_feature_select_);
  Put(bytes, kDriverFeature, half(driver_features_, driver_feature_select_));
  Put(bytes, kConfigVector, config_vector_.load());
  Put(bytes, kNumQueues, static_cast<uint16_t>(queues_.size()));
  Put(bytes, kStatus, static_cast<uint8_t>(status_ | (needs_reset_ ? kNeedsReset : 0)));
  Put(bytes, kConfigGeneration, config_generation_.load());
  Put(bytes, kQueueSelect, queue_select_);
  if (queue_select_ < queues_.size()) {
    const QueueRegisters& queue = queues_[queue_select_];
    Put(bytes, kQueueSize, queue.layout.size);
    Put(bytes, kQueueVector, queue.vector.load());
    Put(bytes, kQueueEnable, static_cast<uint16_t>(queue.enabled));
    Put(bytes, kQueueNotifyOffset, queue_select_);
    Put(bytes, kQueueDescriptors, queue.layout.descriptors.value);
    Put(bytes, kQueueDriver, queue.layout.available.value);
    Put(bytes, kQueueDevice, queue.layout.used.value);
  }
  uint64_t value = 0;
  std::memcpy(&value, bytes.data() + offset, std::min<uint64_t>(width, kCommonBytes - offset));
  return value;
}

uint16_t VirtioPci::CheckedVector(uint64_t vector) const {
  // A vector that cannot be given reads back as none (§4.1.5.1.2.1).
  return vector < msix_.vector_count() ? static_cast<uint16_t>(vector) : kNoVector;
}

void VirtioPci::WriteCommon(uint64_t offset, uint8_t width, uint64_t value) {
  switch (offset) {
    case kDeviceFeatureSelect:
      if (width == 4) device_feature_select_ = static_cast<uint32_t>(value);
      return;
    case kDriverFeatureSelect:
      if (width == 4) driver_feature_select_ = static_cast<uint32_t>(value);
      return;
    case kDriverFeature:
      // Fixed once FEATURES_OK is set (§3.1.1).
      if (width == 4 && driver_feature_select_ < 2 && (status_ & kFeaturesOk) == 0) {
        const unsigned shift = 32 * driver_feature_select_;
        driver_features_ = (driver_features_ & ~(uint64_t{0xFFFF'FFFF} << shift)) | value << shift;
      }
      return;
    case kConfigVector:
      if (width == 2) config_vector_ = CheckedVector(value);
      return;
    case kStatus:
      if (width == 1) WriteStatus(static_cast<uint8_t>(value));
      return;
    case kQueueSelect:
      if (width == 2) queue_select_ = static_cast<uint16_t>(value);
      return;
    default:
      if (queue_select_ < queues_.size()) WriteQueueField(queues_[queue_select_], offset, width, value);
  }
}

void VirtioPci::WriteQueueField(QueueRegisters& queue, uint64_t offset, uint8_t width, uint64_t value) {
  if (offset == kQueueVector && width == 2) {
    queue.vector = CheckedVector(value);
    InterruptsChanged();
    return;
  }
  if (queue.enabled) return;  // the driver may not move a queue that is enabled (§4.1.4.3.2)
  switch (offset) {
    case kQueueSize:
      // A size the queue cannot have is not taken; the driver reads back what it is.
      if (width == 2 && std::has_single_bit(value) && value <= device_->QueueMaxSize()) {
        queue.layout.size = static_cast<uint16_t>(value);
      }
      break;
    case kQueueEnable:
      // Queues are set up before DRIVER_OK (§3.1.1); one enabled later would never be looked at.
      if (width == 2 && value == 1 && (status_ & kDriverOk) == 0) queue.enabled = true;
      break;
    case kQueueDescriptors:
    case kQueueDescriptors + 4:
      WriteAddress(queue.layout.descriptors, offset - kQueueDescriptors, width, value);
      break;
    case kQueueDriver:
    case kQueueDriver + 4:
      WriteAddress(queue.layout.available, offset - kQueueDriver, width, value);
      break;
    case kQueueDevice:
    case kQueueDevice + 4:
      WriteAddress(queue.layout.used, offset - kQueueDevice, width, value);
      break;
    default:
      break;
  }
}

void VirtioPci::WriteStatus(uint8_t status) {
  if (status == 0) {
    Reset();
    return;
  }
  status &= static_cast<uint8_t>(~kNeedsReset);
  const bool sets_features_ok = (status & kFeaturesOk) != 0 && (status_ & kFeaturesOk) == 0;
  // Not accepting the features is said by leaving the bit clear (§2.2.2).
  if (sets_features_ok && !Acceptable(driver_features_)) status &= static_cast<uint8_t>(~kFeaturesOk);
  status_ = static_cast<uint8_t>(status_ | status);  // bits are only ever added (§2.1.1)
  if (WantsActive() && !active_) Activate();
}

bool VirtioPci::Acceptable(uint64_t features) const {
  return (features & ~OfferedFeatures()) == 0 && (features & kFeatureVersion1) != 0;
}

bool VirtioPci::WantsActive() const {
  return (status_ & kDriverOk) != 0 && (status_ & kFeaturesOk) != 0 && !needs_reset_;
}

void VirtioPci::Activate() {
  for (uint16_t i = 0; i < queues_.size(); ++i) {
    QueueRegisters& registers = queues_[i];
    if (!registers.enabled) continue;
    registers.layout.event_index = (driver_features_ & kFeatureEventIndex) != 0;
    auto queue = Virtqueue::Create(memory_, registers.layout, {}, recorder_.Log(i));
    if (!queue.ok()) {
      MarkNeedsReset();
      return;
    }
    registers.queue = *std::move(queue);
  }
  active_ = true;
  // Before the first chain is taken: a successor must not think that the queues are still to be started.
  CommitState();
  device_->Activate(driver_features_, *this);
  // A kick may have come before DRIVER_OK.
  if (!paused_) ProcessAllQueues();
}

void VirtioPci::Reset() {
  if (active_) device_->Deactivate();
  active_ = false;
  status_ = 0;
  needs_reset_ = false;
  isr_ = 0;
  config_vector_ = kNoVector;
  device_feature_select_ = driver_feature_select_ = 0;
  driver_features_ = 0;
  queue_select_ = 0;
  for (QueueRegisters& queue : queues_) {
    queue.queue.reset();
    queue.layout = QueueLayout{.size = device_->QueueMaxSize()};
    queue.enabled = false;
    queue.vector = kNoVector;
  }
}

void VirtioPci::InterruptsChanged() {
  if (active_) device_->InterruptsChanged();
}

void VirtioPci::Kicked(uint16_t index) {
  DrainEventFd(kicks_[index].get());
  // While paused a kick needs no memory: Resume looks at every queue.
  if (active_ && !paused_ && !needs_reset_ && queues_[index].queue) device_->ProcessQueue(index);
}

void VirtioPci::ProcessAllQueues() {
  for (uint16_t i = 0; i < queues_.size(); ++i) {
    if (active_ && !needs_reset_ && queues_[i].queue) device_->ProcessQueue(i);
  }
}

void VirtioPci::Pause() {
  if (paused_) return;
  paused_ = true;
  device_->Pause();
}

void VirtioPci::Resume() {
  if (!paused_) return;
  paused_ = false;
  device_->Resume();
  if (std::exchange(owes_interrupts_, false)) {
    for (uint16_t i = 0; i < queues_.size(); ++i) SignalQueue(i);
    SignalConfigChange();
  }
  ProcessAllQueues();
}

Virtqueue* VirtioPci::Queue(uint16_t index) {
  if (index >= queues_.size() || !queues_[index].queue) return nullptr;
  return &*queues_[index].queue;
}

void VirtioPci::SignalQueue(uint16_t index) {
  isr_ |= kIsrQueue;
  msix_.Signal(queues_[index].vector);
}

void VirtioPci::SignalConfigChange() {
  ++config_generation_;
  isr_ |= kIsrConfig;
  msix_.Signal(config_vector_);
}

void VirtioPci::MarkNeedsReset() {
  if (needs_reset_.exchange(true)) return;
  SignalConfigChange();
}

void VirtioPci::CommitState() {
  recorder_.MarkChanged();
  recorder_.Commit();
}

bool VirtioPci::ReadChanges(uint16_t region, uint64_t offset) const {
  return region == kBar0 && offset == layout::kIsr;
}

void VirtioPci::Save(capnp::AnyPointer::Builder state) const {
  auto out = state.initAs<state::VirtioState>();
  out.setVersion(kStateVersion);
  out.setType(device_->Type());
  out.setStatus(status_);
  out.setNeedsReset(needs_reset_);
  out.setIsr(isr_);
  out.setConfigGeneration(config_generation_);
  out.setDeviceFeatureSelect(device_feature_select_);
  out.setDriverFeatureSelect(driver_feature_select_);
  out.setDriverFeatures(driver_features_);
  out.setConfigVector(config_vector_);
  out.setQueueSelect(queue_select_);
  auto queues = out.initQueues(static_cast<unsigned>(queues_.size()));
  for (unsigned i = 0; i < queues_.size(); ++i) {
    const QueueRegisters& from = queues_[i];
    queues[i].setSize(from.layout.size);
    queues[i].setEnabled(from.enabled);
    queues[i].setVector(from.vector);
    queues[i].setDescriptors(from.layout.descriptors.value);
    queues[i].setAvailable(from.layout.available.value);
    queues[i].setUsed(from.layout.used.value);
    // While the queue is served its position belongs to another thread, and is in its log.
    if (!from.queue || !paused_) continue;
    queues[i].setNextAvailable(from.queue->position().next_available);
    queues[i].setNextUsed(from.queue->position().next_used);
  }
  const auto config = config_space_.Save();
  out.setPciConfig(kj::arrayPtr(config.data(), config.size()));
  const Msix::State msix = msix_.Save();
  out.setMsixEnabled(msix.enabled);
  out.setMsixFunctionMasked(msix.function_masked);
  auto vectors = out.initVectors(static_cast<unsigned>(msix.entries.size()));
  for (unsigned i = 0; i < msix.entries.size(); ++i) {
    vectors[i].setAddress(msix.entries[i].address);
    vectors[i].setData(msix.entries[i].data);
    vectors[i].setMasked((msix.entries[i].control & 1) != 0);
    vectors[i].setPending(msix.pending[i]);
  }
  device_->SaveDevice(out.initDevice());
}

Result<void> VirtioPci::RestoreQueues(capnp::List<state::QueueState>::Reader queues) {
  if (queues.size() != queues_.size()) return Error{EINVAL, "saved state has another number of queues"};
  for (unsigned i = 0; i < queues.size(); ++i) {
    const auto from = queues[i];
    QueueRegisters& to = queues_[i];
    if (!std::has_single_bit(from.getSize()) || from.getSize() > device_->QueueMaxSize()) {
      return Error{EINVAL, "saved state has an impossible queue size"};
    }
    to.layout = {.size = from.getSize(),
                 .descriptors = Gpa{from.getDescriptors()},
                 .available = Gpa{from.getAvailable()},
                 .used = Gpa{from.getUsed()},
                 .event_index = (driver_features_ & kFeatureEventIndex) != 0};
    to.enabled = from.getEnabled();
    to.vector = CheckedVector(from.getVector());
    if (!to.enabled || !WantsActive()) continue;
    auto queue = RestoreQueue(static_cast<uint16_t>(i), from);
    if (!queue.ok()) return queue.error();
    to.queue = *std::move(queue);
  }
  return {};
}

Result<Virtqueue> VirtioPci::RestoreQueue(uint16_t index, state::QueueState::Reader from) {
  const QueueLayout& layout = queues_[index].layout;
  const auto log = recorder_.Log(index);
  if (log && recorder_.taking_over()) {
    const bool by_kernel = device_->IsServedByKernel(index, driver_features_);
    return by_kernel ? Virtqueue::TakeOverFromKernel(memory_, layout, *log)
                     : Virtqueue::TakeOver(memory_, layout, *log);
  }
  return Virtqueue::Create(memory_, layout, {from.getNextAvailable(), from.getNextUsed()}, log);
}

Result<void> VirtioPci::Restore(capnp::AnyPointer::Reader state) {
  Result<void> restored;
  // Cap'n Proto throws where a message is malformed, and it may be.
  const auto malformed = kj::runCatchingExceptions([&] { restored = RestoreParts(state.getAs<state::VirtioState>()); });
  KJ_IF_MAYBE (exception, malformed) {
    restored = Error{EPROTO, std::string("saved state is malformed: ") + exception->getDescription().cStr()};
  }
  // What is left of a state that could not be taken is not worked on.
  if (!restored.ok()) Reset();
  return restored;
}

Result<void> VirtioPci::RestoreParts(state::VirtioState::Reader from) {
  if (from.getVersion() != kStateVersion) return Error{EPROTO, "saved state is of a version that is not known here"};
  if (from.getType() != device_->Type()) return Error{EPROTO, "saved state is of another kind of device"};
  if ((from.getStatus() & kFeaturesOk) != 0 && !Acceptable(from.getDriverFeatures())) {
    return Error{EPROTO, "saved state uses other features than this device has"};
  }
  Reset();
  status_ = static_cast<uint8_t>(from.getStatus() & ~kNeedsReset);
  needs_reset_ = from.getNeedsReset();
  isr_ = from.getIsr();
  config_generation_ = from.getConfigGeneration();
  device_feature_select_ = from.getDeviceFeatureSelect();
  driver_feature_select_ = from.getDriverFeatureSelect();
  driver_features_ = from.getDriverFeatures();
  config_vector_ = CheckedVector(from.getConfigVector());
  queue_select_ = from.getQueueSelect();
  if (auto restored = RestoreQueues(from.getQueues()); !restored.ok()) return restored;
  const auto config = from.getPciConfig();
  if (auto restored = config_space_.Restore({config.begin(), config.size()}); !restored.ok()) return restored;

  if (from.getVectors().size() != msix_.vector_count()) {
    return Error{EPROTO, "saved state has another number of interrupt vectors"};
  }
  Msix::State msix{.enabled = from.getMsixEnabled(), .function_masked = from.getMsixFunctionMasked()};
  for (auto vector : from.getVectors()) {
    msix.entries.push_back(
        {.address = vector.getAddress(), .data = vector.getData(), .control = vector.getMasked() ? 1u : 0u});
    msix.pending.push_back(vector.getPending());
  }
  if (auto restored = msix_.Restore(std::move(msix)); !restored.ok()) return restored;
  if (auto restored = device_->RestoreDevice(from.getDevice()); !restored.ok()) return restored;
  owes_interrupts_ = recorder_.taking_over();
  if (WantsActive()) {
    active_ = true;
    device_->Activate(driver_features_, *this);
  }
  return {};
}

}  // namespace bulkhead::device
