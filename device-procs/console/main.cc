// SPDX-License-Identifier: Apache-2.0
// bulkhead-console: the serial port and, where asked for, the virtio console. Holds the streams that lead outside.
#include "device-procs/common/runtime.h"
#include "device-procs/console/console.h"
#include "device-procs/console/console_settings.capnp.h"
#include "device-procs/console/policy.h"
#include "device-procs/console/virtio_console_model.h"
#include "ipc/child.h"

namespace bulkhead::device {
namespace {

using Settings = console::ConsoleSettings;

struct Stream {
  OwnFd input;
  OwnFd output;
};

// Takes a stream's descriptors from the front of the granted files.
Stream TakeStream(Settings::Stream::Reader settings, std::vector<OwnFd>& files, size_t& next) {
  Stream stream;
  if (settings.getHasInput()) stream.input = std::move(files.at(next++));
  if (settings.getHasOutput()) stream.output = std::move(files.at(next++));
  SetNonBlocking(stream.input);
  SetNonBlocking(stream.output);
  return stream;
}

std::unique_ptr<DeviceModel> Create(DeviceContext context) {
  const auto settings = context.settings.getAs<Settings>();
  size_t next_file = 0;
  Stream serial = TakeStream(settings.getSerial(), context.files, next_file);
  VirtioSide virtio;
  if (settings.getHasVirtioConsole()) {
    Stream stream = TakeStream(settings.getVirtioConsole(), context.files, next_file);
    auto port = std::make_unique<FdBytePort>(*context.loop, LogLine, context.TakeStage(1));
    port->Attach(std::move(stream.input), std::move(stream.output));
    virtio.port = port.get();
    virtio.model = MakeVirtioConsole(context, std::move(port));
  }
  return std::make_unique<Console>(*context.loop,
                                   SerialSettings{.input = std::move(serial.input),
                                                  .output = std::move(serial.output),
                                                  .stage = context.TakeStage(0),
                                                  .irq = std::move(context.lines.at(0).signal)},
                                   LogLine, std::move(virtio));
}

}  // namespace
}  // namespace bulkhead::device

int main(int argc, char** argv) {
  using namespace bulkhead;
  return device::RunDeviceProcess({device::ConsolePolicy(), device::Create}, argc, argv);
}
