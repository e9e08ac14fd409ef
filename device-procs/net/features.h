// SPDX-License-Identifier: Apache-2.0
// Feature bits of a network device (virtio 1.2 §5.1.3).
#pragma once

#include "device-procs/common/virtio_device.h"

namespace bulkhead::device::net_feature {

inline constexpr uint64_t kChecksum = FeatureBit(0);
inline constexpr uint64_t kGuestChecksum = FeatureBit(1);
inline constexpr uint64_t kControlGuestOffloads = FeatureBit(2);
inline constexpr uint64_t kMtu = FeatureBit(3);
inline constexpr uint64_t kMac = FeatureBit(5);
inline constexpr uint64_t kGuestTso4 = FeatureBit(7);
inline constexpr uint64_t kGuestTso6 = FeatureBit(8);
inline constexpr uint64_t kGuestEcn = FeatureBit(9);
inline constexpr uint64_t kHostTso4 = FeatureBit(11);
inline constexpr uint64_t kHostTso6 = FeatureBit(12);
inline constexpr uint64_t kHostEcn = FeatureBit(13);
inline constexpr uint64_t kMergeBuffers = FeatureBit(15);
inline constexpr uint64_t kStatus = FeatureBit(16);
inline constexpr uint64_t kControlQueue = FeatureBit(17);
inline constexpr uint64_t kControlReceive = FeatureBit(18);
inline constexpr uint64_t kControlVlan = FeatureBit(19);
inline constexpr uint64_t kAnnounce = FeatureBit(21);
inline constexpr uint64_t kMultiQueue = FeatureBit(22);
inline constexpr uint64_t kControlMac = FeatureBit(23);
inline constexpr uint64_t kCoalescing = FeatureBit(53);

// What packets on their way to the guest may be without: the driver can do without these again (§5.1.6.5.6.1).
inline constexpr uint64_t kGuestOffloads = kGuestChecksum | kGuestTso4 | kGuestTso6 | kGuestEcn;

}  // namespace bulkhead::device::net_feature
