// SPDX-License-Identifier: Apache-2.0
#include "tests/process/state_text.h"

#include <capnp/dynamic.h>
#include <fmt/format.h>

#include "device-procs/common/virtio_state.capnp.h"
#include "ipc/result.h"

namespace bulkhead::test {
namespace {

class Description {
 public:
  explicit Description(const StateSchema& schema) : schema_(schema) {}

  std::vector<std::string> Take() { return std::move(lines_); }

  void AddStruct(const std::string& path, capnp::DynamicStruct::Reader value) {
    for (const auto field : value.getSchema().getFields()) {
      if (!value.has(field, capnp::HasMode::NON_DEFAULT)) continue;
      const std::string name(field.getProto().getName().cStr());
      Add(path.empty() ? name : path + "." + name, name, value.get(field));
    }
  }

 private:
  void Add(const std::string& path, const std::string& name, capnp::DynamicValue::Reader value) {
    switch (value.getType()) {
      case capnp::DynamicValue::BOOL:
        return AddLine(path, value.as<bool>() ? "true" : "false");
      case capnp::DynamicValue::INT:
        return AddLine(path, fmt::format("{}", value.as<int64_t>()));
      case capnp::DynamicValue::UINT:
        return AddLine(path, fmt::format("{:#x}", value.as<uint64_t>()));
      case capnp::DynamicValue::DATA: {
        std::string bytes;
        for (const uint8_t byte : value.as<capnp::Data>()) bytes += fmt::format("{:02x}", byte);
        return AddLine(path, bytes);
      }
      case capnp::DynamicValue::LIST: {
        const auto list = value.as<capnp::DynamicList>();
        AddLine(path + ".size", std::to_string(list.size()));
        for (unsigned i = 0; i < list.size(); ++i) Add(fmt::format("{}[{}]", path, i), name, list[i]);
        return;
      }
      case capnp::DynamicValue::STRUCT:
        return AddStruct(path, value.as<capnp::DynamicStruct>());
      case capnp::DynamicValue::ANY_POINTER: {
        // A console's virtio function has one of its own in it.
        const auto virtio = capnp::Schema::from<device::state::VirtioState>();
        return AddStruct(path, value.as<capnp::AnyPointer>().getAs<capnp::DynamicStruct>(
                                   name == "virtio" ? virtio : schema_.device));
      }
      default:
        throw FatalError("a field of a kind that no state had yet: " + path);
    }
  }
  void AddLine(const std::string& path, const std::string& value) { lines_.push_back(path + " = " + value); }

  const StateSchema& schema_;
  std::vector<std::string> lines_;
};

}  // namespace

std::vector<std::string> DescribeState(capnp::AnyPointer::Reader state, const StateSchema& schema) {
  Description description(schema);
  description.AddStruct("", state.getAs<capnp::DynamicStruct>(schema.state));
  return description.Take();
}

}  // namespace bulkhead::test
