// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>

#include "broker/launcher/config_file.h"

namespace bulkhead::launcher {
namespace {

using Command = CommandLine::Command;

constexpr const char* kExamples = R"(Examples:
  bulkhead check
  bulkhead run --kernel vmlinuz --initrd initrd.img --append "console=ttyS0"
  bulkhead run --kernel vmlinuz --append "console=ttyS0 root=/dev/vda1" --disk disk.img -m 2G -c 4 --name web1
  bulkhead ps
  bulkhead stop web1

Each device of a VM is emulated in a sandboxed process of its own. See bulkhead(1).)";

// What CLI11 gathers before it is checked.
struct Raw {
  std::string memory = "128M";
  std::vector<std::string> disks;
  std::string console = "stdio";
  std::string virtio_console;
  std::string debug_console = "none";
  std::string display = "none";
  std::string on_device_failure = "stop";
  std::string config;
};

void AddRunOptions(CLI::App& app, RunOptions& run, Raw& raw) {
  // Of a file's setting and the command line's, the later one, the command line's, counts.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--name", run.name, "name of the VM, unique on this host for this user (default: vm-PID)");
  app.add_option("-m,--memory", raw.memory, "memory: 512 (MiB), 512M, 2G (default 128M)");
  app.add_option("-c,--cpus", run.cpus, "number of vCPUs, 1 to 64 (default 1)");
  app.add_option("--kernel", run.kernel, "kernel: a bzImage or an ELF vmlinux");
  app.add_option("--initrd", run.initrd, "initial RAM disk");
  app.add_option("--append", run.append, "kernel command line");
  app.add_option("--disk", raw.disks,
                 "FILE[,readonly][,id=NAME][,direct=on|off][,queues=N]: a raw image or a block device; repeatable")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--console", raw.console, "serial port ttyS0: stdio (default), pty, unix=PATH, file=PATH or none");
  app.add_option("--virtio-console", raw.virtio_console, "virtio console hvc0: the same words (default: no such device)");
  app.add_option("--debug-console", raw.debug_console, "debug port 0x402: stdio, file=PATH or none (default)");
  app.add_option("--display", raw.display, "none (no display in this version)");
  app.add_flag("--reboot", run.reboot, "boot again when the guest resets; without it a reset ends the VM");
  app.add_option("--on-device-failure", raw.on_device_failure,
                 "when a device process dies or hangs: stop the VM (default), or keep it running without the device");
  app.add_option("--exit-deadline", run.exit_deadline_ms, "milliseconds a vCPU waits for a device (default 5000)");
  app.add_option("--config", raw.config, "read options from a TOML file; the command line wins");
}

void FinishRun(RunOptions& run, const Raw& raw) {
  if (run.name.empty()) run.name = "vm-" + std::to_string(::getpid());
  CheckName(run.name);
  run.memory_bytes = ParseMemory(raw.memory);
  if (run.cpus < 1 || run.cpus > 64) throw UsageError("-c: " + std::to_string(run.cpus) + " is not a number from 1 to 64");
  if (run.kernel.empty()) throw UsageError("give a kernel with --kernel FILE: this version has no firmware to boot a disk by");
  for (const std::string& disk : raw.disks) run.disks.push_back(ParseDisk(disk));
  run.console = ParseStream("--console", raw.console);
  if (!raw.virtio_console.empty()) run.virtio_console = ParseStream("--virtio-console", raw.virtio_console);
  run.debug_console = ParseStream("--debug-console", raw.debug_console);
  const auto debug = run.debug_console.kind;
  if (debug == StreamOption::Kind::kPty || debug == StreamOption::Kind::kUnix) {
    throw UsageError("--debug-console: only stdio, file=PATH and none");
  }
  if (run.virtio_console && run.virtio_console->kind == StreamOption::Kind::kStdio &&
      run.console.kind == StreamOption::Kind::kStdio) {
    throw UsageError("--virtio-console stdio: the serial port has the terminal; add --console none");
  }
  if (raw.display != "none") throw UsageError("--display " + raw.display + ": this version has no display; use none");
  if (raw.on_device_failure != "stop" && raw.on_device_failure != "keep") {
    throw UsageError("--on-device-failure: '" + raw.on_device_failure + "' is neither stop nor keep");
  }
  run.keep_on_device_failure = raw.on_device_failure == "keep";
}

std::string FindConfig(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--config" && i + 1 < arguments.size()) return arguments[i + 1];
    if (arguments[i].starts_with("--config=")) return arguments[i].substr(9);
  }
  return "";
}

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

}  // namespace

CommandLine ParseCommandLine(std::vector<std::string> arguments) {
  CommandLine line;
  Raw raw;
  CLI::App app("Bulkhead: virtual machines for KVM, each device in a sandbox of its own", "bulkhead");
  app.footer(kExamples);
  app.set_version_flag("--version", "bulkhead " BULKHEAD_VERSION);
  CLI::App* run = app.add_subcommand("run", "run a VM in the foreground");
  AddRunOptions(*run, line.run, raw);
  CLI::App* check = app.add_subcommand("check", "what this host's KVM can do, found by trying, and what is missing");
  check->add_flag("--json", line.check.json, "as JSON");
  check->add_flag("--stock-kernels", line.check.stock_kernels,
                  "say nothing and exit 0 if unmodified kernels can run here, else say why not and exit 1");
  CLI::App* ps = app.add_subcommand("ps", "the VMs of this user");
  ps->add_flag("--json", line.vm.json, "as JSON");
  CLI::App* stop = app.add_subcommand("stop", "press a VM's power button and wait for its end");
  stop->add_option("NAME", line.vm.name, "the VM")->required();
  stop->add_option("--timeout", line.vm.timeout_s, "seconds to wait (default 30)");
  stop->add_flag("--force", line.vm.force, "kill it when the time is up");
  CLI::App* kill = app.add_subcommand("kill", "end a VM now");
  kill->add_option("NAME", line.vm.name, "the VM")->required();
  CLI::App* inspect = app.add_subcommand("inspect", "a VM's processes and what the kernel lets them do");
  inspect->add_option("NAME", line.vm.name, "the VM")->required();
  inspect->add_flag("--json", line.vm.json, "as JSON");

  arguments = TranslateHabits(arguments);
  if (!arguments.empty() && arguments[0] == "run") {
    const std::string config = FindConfig(arguments);
    if (!config.empty()) {
      const auto words = ReadConfigFile(config);
      arguments.insert(arguments.begin() + 1, words.begin(), words.end());
    }
  }
  if (arguments.empty()) {
    line.help = app.help();
    return line;
  }
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(reversed);
  } catch (const CLI::CallForVersion& version) {
    line.help = std::string(version.what()) + "\n";
    return line;
  } catch (const CLI::CallForHelp&) {
    for (CLI::App* command : app.get_subcommands()) line.help = command->help();
    if (line.help.empty()) line.help = app.help();
    return line;
  } catch (const CLI::ParseError& error) {
    throw UsageError(OneLine(error.what()) + " (see `bulkhead --help`)");
  }
  if (run->parsed()) {
    line.command = Command::kRun;
    FinishRun(line.run, raw);
  } else if (check->parsed()) {
    line.command = Command::kCheck;
  } else if (ps->parsed()) {
    line.command = Command::kPs;
  } else if (stop->parsed()) {
    line.command = Command::kStop;
  } else if (kill->parsed()) {
    line.command = Command::kKill;
  } else if (inspect->parsed()) {
    line.command = Command::kInspect;
  } else {
    line.help = app.help();
  }
  return line;
}

}  // namespace bulkhead::launcher
