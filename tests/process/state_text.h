// SPDX-License-Identifier: Apache-2.0
// A device's saved state as text, so that what is in a file can be read and compared: a line "path = value" for each
// field that is not the schema's default.
#pragma once

#include <capnp/any.h>
#include <capnp/schema.h>

#include <string>
#include <vector>

namespace bulkhead::test {

// What a saved state is: its struct, and the one that is the virtio device's own, if there is one.
struct StateSchema {
  capnp::StructSchema state;
  capnp::StructSchema device;
};

std::vector<std::string> DescribeState(capnp::AnyPointer::Reader state, const StateSchema& schema);

}  // namespace bulkhead::test
