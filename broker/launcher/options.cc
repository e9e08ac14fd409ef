// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "broker/launcher/config_file.h"
#include "broker/launcher/img_options.h"
#include "broker/launcher/suggestion.h"

namespace bulkhead::launcher {
namespace {

using Command = CommandLine::Command;

constexpr const char* kExamples = R"(Examples:
  bulkhead check
  bulkhead run --kernel vmlinuz --initrd initrd.img --append "console=ttyS0"
  bulkhead run --kernel vmlinuz --append "console=ttyS0 root=/dev/vda1" --disk disk.img -m 2G -c 4 --name web1
  bulkhead ps
  bulkhead stop web1

`bulkhead COMMAND --help` explains a command. Each device of a VM is emulated in a sandboxed process of its own. See
bulkhead(1).)";

constexpr const char* kRunHelp = R"(Examples:
  bulkhead run --kernel vmlinuz --initrd initrd.img --append "console=ttyS0"
      boots a kernel on this terminal: Ctrl-a h lists the keys there, Ctrl-a x ends the VM
  bulkhead run -m 2G -c 4 --name web1 --kernel vmlinuz --append "console=ttyS0 root=/dev/vda1" --disk disk.img
      boots a Debian disk's kernel with that disk as /dev/vda
  bulkhead run --kernel vmlinuz --disk data.img,readonly,id=DATA --console file=web1.log
      with a disk that cannot be written, and the console's output in a file
  bulkhead run --kernel vmlinuz --disk disk.img --net bridge=br0,ip=192.0.2.7
      with a new tap on a bridge, from which the guest can send with that address only
  bulkhead run --kernel vmlinuz --disk disk.img --net user,hostfwd=tcp::2222-:22
      with a network that needs no rights; `ssh -p 2222 localhost` leads to the guest
  bulkhead run --config web1.toml -m 4G
      options from a file, in which `memory = "2G"` is --memory 2G; what stands here counts more

Of QEMU's options -m 512, -smp 2, -hda FILE, -kernel, -initrd, -append, -name and -nographic work too.
SIGTERM and SIGINT press the guest's power button; a second one ends the VM. The exit status is 0 when the guest powers
off or resets or when you end it, 1 for a failure, 2 for a wrong command line.)";

constexpr const char* kCheckHelp = R"(Examples:
  bulkhead check                    a table; the exit status is 0 if VMs run here
  bulkhead check --stock-kernels    for scripts: the exit status is 0 if unmodified kernels run here)";

constexpr const char* kStopHelp = R"(Examples:
  bulkhead stop web1                        presses the power button, waits 30 s, then says so
  bulkhead stop web1 --timeout 60 --force   kills it when 60 s are over)";

constexpr const char* kThrottleHelp = R"(Examples:
  bulkhead throttle web1 disk0 bps=50M,iops=1000             from now on, instead of the limits it has
  bulkhead throttle web1 disk0 iops=100,iops-burst=5000      5000 at once after a rest, then 100 a second
  bulkhead throttle web1 net0 bps=10M,pps=20000              of a network interface, each direction
  bulkhead throttle web1 disk0 off                           no limits)";

constexpr const char* kSetLinkHelp = R"(Examples:
  bulkhead set-link web1 net0 off    as if its cable were pulled: nothing is carried, and the guest is told
  bulkhead set-link web1 net0 on     and plugged in again)";

constexpr const char* kUpgradeHelp = R"(Examples:
  bulkhead upgrade web1              every device that can be, one after the other
  bulkhead upgrade web1 disk0        this one
  bulkhead upgrade web1 broker       the broker: nothing of the VM stops meanwhile
The guest goes on meanwhile, and waits where it needs the device. With a process of user-mode networking (usernet0)
the connections through it end.)";

constexpr const char* kInspectHelp = R"(Examples:
  bulkhead inspect web1             what the kernel says of each process: user, capabilities, system calls, ...
                                    and what each network interface has carried
  bulkhead inspect web1 --verify    for scripts: the exit status is 0 if each has exactly the walls it must have
Root sees everything; the user who started the VM a part of it.)";

constexpr const char* kDirtyRateHelp = R"(Examples:
  bulkhead dirty-rate web1                 how much of its memory is written in a second, and by whom
  bulkhead dirty-rate web1 --seconds 10    the same of ten
A page counts once, however often it is written. Each of the VM's processes takes note of what it writes meanwhile, and
KVM of what the guest's processors do, which costs the guest some speed.)";

// What CLI11 gathers before it is checked.
struct Raw {
  std::string memory = "128M";
  std::string cpus = "1";
  std::vector<std::string> disks;
  std::string cloud_init;
  std::vector<std::string> nets;
  std::string console = "stdio";
  std::string virtio_console;
  std::string debug_console = "none";
  std::string display = "none";
  std::string on_device_failure = "keep";
  std::string config;
  std::vector<std::string> limits;
  std::string uids;
  std::string throttle;
  std::string link;
  std::string require_sandbox = "none";
};

void AddRunOptions(CLI::App& app, RunOptions& run, Raw& raw) {
  // Of a file's setting and the command line's, the later one, the command line's, counts.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--name", run.name, "name of the VM, unique for this user (default: vm-PID)")->type_name("NAME");
  app.add_option("-m,--memory", raw.memory, "memory: 512 (MiB), 512M, 2G (default 128M)")->type_name("SIZE");
  app.add_option("-c,--cpus", raw.cpus, "number of vCPUs, 1 to 64 (default 1)")->type_name("N");
  app.add_option("--kernel", run.kernel, "kernel: a bzImage or an ELF vmlinux")->type_name("FILE");
  app.add_option("--initrd", run.initrd, "initial RAM disk")->type_name("FILE");
  app.add_option("--append", run.append, "kernel command line")->type_name("STRING");
  app.add_option("--disk", raw.disks,
                 "an image or a block device, with [,format=raw|qcow2|qcow] (default: by the name's ending), "
                 "[,backing=FILE[,backing-format=..]] or [,backing-from-header], "
                 "[,readonly][,id=NAME][,direct=off][,queues=N][,bps=N][,iops=N]; "
                 "repeatable")
      ->type_name("FILE")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--cloud-init", raw.cloud_init,
                 "a disk that tells cloud-init in the guest what to set up: a folder with user-data and, if there, "
                 "meta-data, network-config and vendor-data, or user-data=FILE[,meta-data=FILE]..; [,hostname=NAME]")
      ->type_name("DIR|WORDS");
  app.add_option(
         "--net", raw.nets,
         "a network interface: tap=NAME, bridge=NAME for a new tap on a bridge, or user, which needs no rights, with "
         "[,mac=ADDRESS][,ip=ADDRESS[+ADDRESS]..][,mac-spoofing=allow][,bps=N][,pps=N][,mtu=N][,queues=N][,vhost=on][,"
         "id=NAME][,link=off]; "
         "user also with [,hostfwd=tcp|udp:[ADDRESS]:PORT-[ADDRESS]:PORT].."
         "[,guestfwd=tcp:ADDRESS:PORT-tcp:ADDRESS:PORT]..[,allow=ADDRESS[/LENGTH][:PORT]]..[,deny=..]..[,restrict=on]"
         "[,dns=ADDRESS|off][,hostname=NAME][,net=ADDRESS/LENGTH][,ipv4=off][,ipv6=off]; repeatable")
      ->type_name("WORDS")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--console", raw.console, "serial port ttyS0: stdio (default), pty, unix=PATH, file=PATH or none")
      ->type_name("STREAM");
  app.add_option("--virtio-console", raw.virtio_console,
                 "virtio console hvc0: the same words (default: no such device)")
      ->type_name("STREAM");
  app.add_option("--debug-console", raw.debug_console, "debug port 0x402: stdio, file=PATH or none (default)")
      ->type_name("STREAM");
  app.add_option("--display", raw.display, "none (no display in this version)")->type_name("WORD");
  app.add_flag("--reboot", run.reboot, "boot again when the guest resets; without it a reset ends the VM");
  app.add_option("--on-device-failure", raw.on_device_failure,
                 "when a device is given up: keep the VM running without it (default), or stop the VM")
      ->type_name("WORD");
  app.add_option("--device-restarts", run.device_restarts,
                 "how often within a minute another process may take the place of one device's that died or hung, "
                 "before the device is given up; the same of the broker, with which the VM ends then (default 10)")
      ->type_name("N");
  app.add_option(
         "--exit-deadline", run.exit_deadline_ms,
         "milliseconds a vCPU waits for a device, and how often one that nobody waits for is asked whether it still "
         "lives (default 5000)")
      ->type_name("N");
  app.add_option("--limit", raw.limits,
                 "what all of the VM's processes may use, any of memory=SIZE, cpu=2 or cpu=150%, pids=N, "
                 "io=BYTES_PER_SECOND (default: as much as a guest of this memory can need)")
      ->type_name("WORDS")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--uids", raw.uids,
                 "as root: the user ids that its processes get, one each (default: 1879048192-1895825407)")
      ->type_name("FIRST-LAST");
  app.add_option("--require-sandbox", raw.require_sandbox,
                 "full: do not start where this host lacks a wall of the sandbox; none (default): only say so")
      ->type_name("WORD");
  app.add_option("--config", raw.config, "read options from a TOML file; the command line wins")->type_name("FILE");
  app.footer(kRunHelp);
}

void FinishRun(RunOptions& run, const Raw& raw) {
  if (!raw.cloud_init.empty()) {
    run.cloud_init = ParseCloudInit(raw.cloud_init);
    if (run.cloud_init->hostname.empty()) run.cloud_init->hostname = run.name;
  }
  if (run.name.empty()) run.name = "vm-" + std::to_string(::getpid());
  CheckName(run.name);
  run.memory_bytes = ParseMemory(raw.memory);
  run.cpus = ParseCpus(raw.cpus);
  if (run.kernel.empty())
    throw UsageError("give a kernel with --kernel FILE: this version has no firmware to boot a disk by");
  for (const std::string& disk : raw.disks) run.disks.push_back(ParseDisk(disk));
  for (const std::string& net : raw.nets) run.nets.push_back(ParseNet(net));
  for (const std::string& limit : raw.limits) ParseLimits(limit, run.limits);
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
  if (raw.require_sandbox != "full" && raw.require_sandbox != "none") {
    throw UsageError("--require-sandbox: '" + raw.require_sandbox + "' is neither full nor none");
  }
  run.require_full_sandbox = raw.require_sandbox == "full";
  if (!raw.uids.empty()) ParseUids(raw.uids, run);
  run.keep_on_device_failure = raw.on_device_failure == "keep";
}

bool ParseLink(const std::string& text) {
  if (text != "on" && text != "off") throw UsageError("set-link: '" + text + "' is neither on nor off");
  return text == "on";
}

std::vector<std::string> FindConfigs(const std::vector<std::string>& arguments) {
  std::vector<std::string> paths;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--config" && i + 1 < arguments.size()) paths.push_back(arguments[i + 1]);
    if (arguments[i].starts_with("--config=")) paths.push_back(arguments[i].substr(9));
  }
  return paths;
}

// What is wrong with the first word that nothing takes.
std::string DescribeStranger(CLI::App& app) {
  const auto commands = app.get_subcommands();
  CLI::App* innermost = commands.empty() ? &app : commands.front();
  const auto jobs = commands.empty() ? commands : innermost->get_subcommands();
  if (!jobs.empty()) innermost = jobs.front();
  CLI::App& command = *innermost;
  const std::vector<std::string> strangers = app.remaining(true);
  const auto option = std::find_if(strangers.begin(), strangers.end(), [](const auto& word) { return word[0] == '-'; });
  const std::string word = option != strangers.end() ? *option : strangers.empty() ? "?" : strangers.front();
  const std::string outer = jobs.empty() ? "bulkhead" : "bulkhead " + commands.front()->get_name();
  const std::string title = commands.empty() ? outer : outer + " " + command.get_name();
  const std::string see = " (see `" + title + " --help`)";

  std::vector<std::string> known;
  if (word.starts_with("-")) {
    for (const CLI::Option* each : command.get_options()) {
      for (const std::string& name : each->get_lnames()) known.push_back("--" + name);
    }
  } else if (const auto inner = command.get_subcommands([](CLI::App*) { return true; }); !inner.empty()) {
    for (const CLI::App* each : inner) known.push_back(each->get_name());
  } else {
    return "unexpected word '" + word + "': `" + title + "` takes no such argument; is an option missing before it?" +
           see;
  }
  const std::string nearest = NearestWord(word.substr(0, word.find('=')), known);
  return (word.starts_with("-") ? "unknown option '" : "unknown command '") + word + "'" +
         (nearest.empty() ? "" : "; did you mean " + nearest + "?") + see;
}

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

// Gives what checks the words of `bulkhead img`.
std::function<ImgOptions()> AddCommands(CLI::App& app, CommandLine& line, Raw& raw) {
  app.footer(kExamples);
  app.set_version_flag("--version", "bulkhead " BULKHEAD_VERSION);
  const auto add = [&](const char* name, const char* what, Command command) {
    CLI::App* added = app.add_subcommand(name, what);
    added->parse_complete_callback([&line, command] { line.command = command; });
    return added;
  };
  AddRunOptions(*add("run", "run a VM in the foreground", Command::kRun), line.run, raw);
  CLI::App* check = add("check", "what this host's KVM can do, found by trying, and what is missing", Command::kCheck);
  check->add_flag("--json", line.check.json, "as JSON");
  check->add_flag("--stock-kernels", line.check.stock_kernels,
                  "say nothing and exit 0 if unmodified kernels can run here, else say why not and exit 1");
  check->footer(kCheckHelp);
  CLI::App* ps = add("ps", "the VMs of this user", Command::kPs);
  ps->add_flag("--json", line.vm.json, "as JSON");
  CLI::App* stop = add("stop", "press a VM's power button and wait for its end", Command::kStop);
  stop->add_option("NAME", line.vm.name, "the VM")->required()->type_name("");
  stop->add_option("--timeout", line.vm.timeout_s, "seconds to wait (default 30)")->type_name("S");
  stop->add_flag("--force", line.vm.force, "kill it when the time is up");
  stop->footer(kStopHelp);
  CLI::App* kill = add("kill", "end a VM now", Command::kKill);
  kill->add_option("NAME", line.vm.name, "the VM")->required()->type_name("");
  CLI::App* throttle =
      add("throttle", "limit what a running VM's disk or network interface may do", Command::kThrottle);
  throttle->add_option("NAME", line.vm.name, "the VM")->required()->type_name("");
  throttle->add_option("DEVICE", line.vm.device, "disk0, net0, ...")->required()->type_name("");
  throttle
      ->add_option(
          "LIMITS", raw.throttle,
          "bps=BYTES, bps-burst=BYTES, iops=N, iops-burst=N, of a network interface pps=N, pps-burst=N; or off")
      ->required()
      ->type_name("");
  throttle->footer(kThrottleHelp);
  CLI::App* set_link =
      add("set-link", "take a running VM's network interface off its network, or back", Command::kSetLink);
  set_link->add_option("NAME", line.vm.name, "the VM")->required()->type_name("");
  set_link->add_option("INTERFACE", line.vm.device, "net0, ...")->required()->type_name("");
  set_link->add_option("STATE", raw.link, "on or off")->required()->type_name("");
  set_link->footer(kSetLinkHelp);
  CLI::App* upgrade = add("upgrade", "replace processes of a running VM by the installed version", Command::kUpgrade);
  upgrade->add_option("NAME", line.vm.name, "the VM")->required()->type_name("");
  upgrade->add_option("DEVICE", line.vm.device, "disk0, console, ..., or broker (default: all devices)")->type_name("");
  upgrade->footer(kUpgradeHelp);
  CLI::App* inspect = add("inspect", "a VM's processes and what the kernel lets them do", Command::kInspect);
  inspect->add_option("NAME", line.vm.name, "the VM")->required()->type_name("");
  CLI::Option* json = inspect->add_flag("--json", line.vm.json, "as JSON");
  inspect
      ->add_flag("--verify", line.vm.verify, "say only where they differ from what they may be; status 1 if any does")
      ->excludes(json);
  inspect->footer(kInspectHelp);
  CLI::App* dirty_rate = add("dirty-rate", "how fast a VM writes to its memory", Command::kDirtyRate);
  dirty_rate->add_option("NAME", line.vm.name, "the VM")->required()->type_name("");
  dirty_rate->add_option("--seconds", line.vm.seconds, "how long to look, 1 to 3600 (default 1)")
      ->check(CLI::Range(1, 3600))
      ->type_name("N");
  dirty_rate->add_flag("--json", line.vm.json, "as JSON");
  dirty_rate->footer(kDirtyRateHelp);
  app.get_formatter()->column_width(28);
  return AddImgCommand(app, [&line] { line.command = Command::kImg; });
}

// This command's own words: "help COMMAND" and QEMU's habits put into them, configuration files' before the user's.
std::vector<std::string> Prepare(std::vector<std::string> arguments) {
  if (!arguments.empty() && arguments[0] == "help") {
    arguments.erase(arguments.begin());
    arguments.emplace_back("--help");
  }
  // Its words are qemu-img's, not QEMU's.
  if (!arguments.empty() && arguments[0] == "img") return arguments;
  arguments = TranslateHabits(arguments);
  if (arguments.empty() || arguments[0] != "run") return arguments;
  std::vector<std::string> configured;
  for (const std::string& path : FindConfigs(arguments)) {
    const auto words = ReadConfigFile(path);
    configured.insert(configured.end(), words.begin(), words.end());
  }
  arguments.insert(arguments.begin() + 1, configured.begin(), configured.end());
  return arguments;
}

}  // namespace

CommandLine ParseCommandLine(std::vector<std::string> arguments) {
  CommandLine line;
  Raw raw;
  CLI::App app("Bulkhead: virtual machines for KVM, each device in a sandbox of its own", "bulkhead");
  const auto finish_img = AddCommands(app, line, raw);
  arguments = Prepare(std::move(arguments));
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForVersion& version) {
    line.command = Command::kHelp;
    line.help = std::string(version.what()) + "\n";
    return line;
  } catch (const CLI::CallForHelp&) {
    line.command = Command::kHelp;
    for (CLI::App* command : app.get_subcommands()) line.help = command->help("bulkhead");
    for (CLI::App* command : app.get_subcommands()) {
      for (CLI::App* job : command->get_subcommands()) line.help = job->help("bulkhead " + command->get_name());
    }
    if (line.help.empty()) line.help = app.help();
    return line;
  } catch (const CLI::ExtrasError&) {
    throw UsageError(DescribeStranger(app));
  } catch (const CLI::ParseError& error) {
    throw UsageError(OneLine(error.what()) + " (see `bulkhead --help`)");
  }
  if (line.command == Command::kHelp) line.help = app.help();
  if (line.command == Command::kRun) FinishRun(line.run, raw);
  if (line.command == Command::kThrottle) line.vm.throttle = ParseThrottle(raw.throttle);
  if (line.command == Command::kSetLink) line.vm.link_up = ParseLink(raw.link);
  if (line.command == Command::kImg) line.img = finish_img();
  return line;
}

}  // namespace bulkhead::launcher
