// SPDX-License-Identifier: Apache-2.0
#include "broker/vm_end.h"

#include <utility>

namespace bulkhead::broker {

VmEnd::VmEnd(control::ExitReport::Kind end_kind, std::string end_detail)
    : kind(end_kind), detail(std::move(end_detail)) {}
VmEnd::VmEnd(const VmEnd&) = default;
VmEnd::VmEnd(VmEnd&&) noexcept = default;
VmEnd& VmEnd::operator=(const VmEnd&) = default;
VmEnd& VmEnd::operator=(VmEnd&&) noexcept = default;
VmEnd::~VmEnd() = default;

}  // namespace bulkhead::broker
