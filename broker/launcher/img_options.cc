// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/img_options.h"

#include <CLI/CLI.hpp>
#include <bit>
#include <charconv>
#include <map>

#include "broker/launcher/options.h"
#include "broker/launcher/suggestion.h"

namespace bulkhead::launcher {
namespace {

using Job = ImgOptions::Job;

constexpr uint64_t kSectorBytes = 512;

constexpr const char* kImgHelp = R"(Examples:
  bulkhead img create -f qcow2 disk.qcow2 10G
  bulkhead img create -f qcow2 -b base.qcow2 -F qcow2 web1.qcow2
  bulkhead img convert -p -O qcow2 disk.img disk.qcow2
  bulkhead img convert -O qcow2 part1.img part2.img whole.qcow2
  bulkhead img info disk.qcow2
  bulkhead img check -r leaks disk.qcow2
  bulkhead img snapshot -c before-upgrade disk.qcow2

Images are read in a sandboxed process. A file that a header names below an image is opened only with --backing FILE, or
with --backing-from-header, which trusts the header's author to name any file that you can read.)";

// What CLI11 gathers before it is checked.
struct Raw {
  ImgOptions options;
  std::string format;
  std::string other_format;
  std::string size;
  std::vector<std::string> words;
  std::vector<std::string> files;  // of convert: the target is the last
  std::string repair;
  std::string output;
  std::string sparse;
  std::string create, apply, remove;
  bool list = false;
  bool any_order = false;
  bool chosen = false;  // a job
};

bool ParseSwitch(const std::string& name, const std::string& value) {
  if (value == "on" || value == "true") return true;
  if (value == "off" || value == "false") return false;
  throw UsageError("-o " + name + ": '" + value + "' is neither on nor off");
}

void SetWord(const std::string& name, const std::string& value, ImgOptions& options) {
  using Preallocation = ImgOptions::Preallocation;
  static const std::map<std::string, Preallocation> kPreallocations{{"off", Preallocation::kOff},
                                                                    {"metadata", Preallocation::kMetadata},
                                                                    {"falloc", Preallocation::kFalloc},
                                                                    {"full", Preallocation::kFull}};
  static const std::vector<std::string> kNames{"size",           "cluster_size",     "preallocation", "refcount_bits",
                                               "lazy_refcounts", "compression_type", "compat",        "backing_file",
                                               "backing_fmt",    "extended_l2"};
  const auto wrong = [&](const std::string& what) { return UsageError("-o " + name + "=" + value + ": " + what); };
  if (name == "size") {
    options.size_bytes = ParseImageSize(value);
  } else if (name == "cluster_size") {
    options.cluster_bytes = ParseImageSize(value);
    if (!std::has_single_bit(options.cluster_bytes) || options.cluster_bytes < 512 || options.cluster_bytes > 2 << 20) {
      throw wrong("a power of two from 512 to 2M is possible");
    }
  } else if (name == "preallocation") {
    if (!kPreallocations.contains(value)) throw wrong("there are off, metadata, falloc and full");
    options.preallocation = kPreallocations.at(value);
  } else if (name == "refcount_bits") {
    const uint64_t bits = ParseImageSize(value);
    if (!std::has_single_bit(bits) || bits > 64) throw wrong("a power of two from 1 to 64 is possible");
    options.refcount_bits = static_cast<uint32_t>(bits);
  } else if (name == "lazy_refcounts") {
    options.lazy_refcounts = ParseSwitch(name, value);
  } else if (name == "compression_type") {
    if (value != "zlib" && value != "zstd") throw wrong("there are zlib and zstd");
    options.zstd = value == "zstd";
  } else if (name == "compat") {
    if (value != "0.10" && value != "v2" && value != "1.1" && value != "v3") throw wrong("there are 0.10 and 1.1");
    options.version = value == "0.10" || value == "v2" ? 2 : 3;
  } else if (name == "backing_file") {
    options.new_backing = value;
  } else if (name == "backing_fmt") {
    options.new_backing_format = value;
  } else if (name == "extended_l2") {
    if (ParseSwitch(name, value)) throw wrong("subclusters are not supported");
  } else {
    const std::string nearest = NearestWord(name, kNames);
    throw UsageError("-o: no option '" + name + "'" + (nearest.empty() ? "" : "; did you mean " + nearest + "?"));
  }
}

void AddCreateWords(CLI::App& command, Raw& raw) {
  command
      .add_option("-o,--options", raw.words,
                  "of qcow2: cluster_size=, preallocation=off|metadata|falloc|full, refcount_bits=, lazy_refcounts=on, "
                  "compression_type=zlib|zstd, compat=0.10|1.1")
      ->allow_extra_args(false)
      ->type_name("NAME=VALUE,...");
}

void AddBacking(CLI::App& command, Raw& raw) {
  command
      .add_option("--backing", raw.options.backing,
                  "the file below the image, again for the one below that; whatever the header names")
      ->allow_extra_args(false)
      ->type_name("FILE");
  command.add_flag("--backing-from-header", raw.options.backing_from_header,
                   "open the regular files that the headers name");
}

void AddFormat(CLI::App& command, Raw& raw) {
  command.add_option("-f,--format", raw.format, "raw, qcow2, qcow (default: by its first bytes)")->type_name("FMT");
}

void AddOutput(CLI::App& command, Raw& raw) {
  command.add_flag("--json", raw.options.json, "as JSON");
  command.add_option("--output", raw.output, "human (default) or json")->type_name("WORD");
  command.add_flag("-U,--force-share", raw.options.force_share, "also while a VM writes to it: may read nonsense");
}

void AddFile(CLI::App& command, Raw& raw) {
  command.add_option("FILE", raw.options.file, "the image")->required()->type_name("");
}

void AddCreate(CLI::App& create, Raw& raw) {
  create.add_option("-f,--format", raw.format, "raw (default) or qcow2")->type_name("FMT");
  create.add_option("-b,--backing-file", raw.options.new_backing, "the image shows this one until it is written")
      ->type_name("FILE");
  create.add_option("-F,--backing-format", raw.options.new_backing_format, "its format")->type_name("FMT");
  create.add_flag("-u,--unsafe", raw.options.unsafe, "do not look at the backing file");
  create.add_flag("-q,--quiet", raw.options.quiet, "say nothing");
  AddCreateWords(create, raw);
  AddFile(create, raw);
  create.add_option("SIZE", raw.size, "bytes, or with k, M, G, T; default: the backing file's")->type_name("");
}

void AddConvert(CLI::App& convert, Raw& raw) {
  AddFormat(convert, raw);
  convert.add_option("-O,--target-format", raw.other_format, "raw (default) or qcow2")->type_name("FMT");
  convert.add_flag("-c,--compress", raw.options.compress, "compressed clusters (qcow2)");
  convert.add_flag("-p,--progress", raw.options.progress, "show how far it is; on a terminal it does so anyway");
  convert.add_flag("-q,--quiet", raw.options.quiet, "say nothing");
  convert
      .add_option("-l,--snapshot", raw.options.snapshot_name, "what the disk was in this one, by id or name (qcow2)")
      ->type_name("NAME");
  convert.add_flag("-n,--no-create", raw.options.no_create, "the target is there");
  convert.add_flag("-W", raw.any_order, "data may be written in any order, as they always are");
  convert.add_option("-m,--requests", raw.options.requests, "requests at one time, 1 to 16 (default 8)")
      ->check(CLI::Range(1, 16))
      ->type_name("N");
  convert
      .add_option("-B,--target-backing", raw.options.new_backing,
                  "make the target over this file, of what it does not have already")
      ->type_name("FILE");
  convert.add_option("-F,--backing-format", raw.options.new_backing_format, "that file's format")->type_name("FMT");
  convert.add_option("-S,--sparse", raw.sparse, "as many zeroes become a hole (default 4k; 0: none do)")
      ->type_name("SIZE");
  AddCreateWords(convert, raw);
  AddBacking(convert, raw);
  convert.add_option("FILE", raw.files, "the image, or several that become one disk; the last one: what it becomes")
      ->required()
      ->type_name("");
}

void AddSnapshot(CLI::App& snapshot, Raw& raw) {
  AddFormat(snapshot, raw);
  auto* work = snapshot.add_option_group("work", "one of");
  work->add_flag("-l,--list", raw.list, "list them (default)");
  work->add_option("-c,--create", raw.create, "keep what the disk is now")->type_name("NAME");
  work->add_option("-a,--apply", raw.apply, "the disk becomes what it was")->type_name("NAME");
  work->add_option("-d,--delete", raw.remove, "give it up")->type_name("NAME");
  work->require_option(0, 1);
  snapshot.add_flag("-q,--quiet", raw.options.quiet, "say nothing");
  snapshot.add_flag("-U,--force-share", raw.options.force_share, "list also while a VM writes to it");
  AddFile(snapshot, raw);
}

void AddRebase(CLI::App& rebase, Raw& raw) {
  AddFormat(rebase, raw);
  rebase.add_option("-b,--backing-file", raw.options.new_backing, "what lies below from now on; \"\": nothing")
      ->required()
      ->type_name("FILE");
  rebase.add_option("-F,--backing-format", raw.options.new_backing_format, "its format")->type_name("FMT");
  rebase.add_flag("-u,--unsafe", raw.options.unsafe,
                  "change the header alone: the new file holds what the old one did");
  rebase.add_flag("-p,--progress", raw.options.progress, "show how far it is");
  rebase.add_flag("-q,--quiet", raw.options.quiet, "say nothing");
  AddBacking(rebase, raw);
  AddFile(rebase, raw);
}

void AddOthers(const std::function<CLI::App*(const char*, const char*, Job)>& add, Raw& raw) {
  CLI::App* info = add("info", "what an image is", Job::kInfo);
  AddFormat(*info, raw);
  AddOutput(*info, raw);
  AddFile(*info, raw);
  CLI::App* check = add("check", "whether an image's tables agree; status 2: damaged, 3: clusters leaked", Job::kCheck);
  AddFormat(*check, raw);
  AddOutput(*check, raw);
  check->add_option("-r,--repair", raw.repair, "leaks, or all")->type_name("WHAT");
  check->add_flag("-q,--quiet", raw.options.quiet, "say nothing");
  AddFile(*check, raw);
  CLI::App* resize = add("resize", "make a disk larger or smaller", Job::kResize);
  AddFormat(*resize, raw);
  resize->add_flag("--shrink", raw.options.shrink, "it may lose what lies beyond");
  resize->add_flag("-q,--quiet", raw.options.quiet, "say nothing");
  AddBacking(*resize, raw);
  AddFile(*resize, raw);
  resize->add_option("SIZE", raw.size, "10G, or +2G, or -2G")->required()->type_name("");
  CLI::App* map = add("map", "where an image's data are", Job::kMap);
  AddFormat(*map, raw);
  AddOutput(*map, raw);
  AddFile(*map, raw);
  CLI::App* commit = add("commit", "write an image into the file below it, and empty it", Job::kCommit);
  AddFormat(*commit, raw);
  commit->add_flag("-p,--progress", raw.options.progress, "show how far it is");
  commit->add_flag("-q,--quiet", raw.options.quiet, "say nothing");
  AddBacking(*commit, raw);
  AddFile(*commit, raw);
  CLI::App* compare = add("compare", "whether two disks hold the same; status 1: they do not", Job::kCompare);
  AddFormat(*compare, raw);
  compare->add_option("-F,--second-format", raw.other_format, "the second's format")->type_name("FMT");
  compare->add_flag("-s,--strict", raw.options.strict, "sizes must be the same too");
  compare->add_flag("-p,--progress", raw.options.progress, "show how far it is");
  compare->add_flag("-q,--quiet", raw.options.quiet, "say nothing");
  AddBacking(*compare, raw);
  AddFile(*compare, raw);
  compare->add_option("FILE2", raw.options.other, "the other image")->required()->type_name("");
}

void FinishSizes(Raw& raw) {
  ImgOptions& options = raw.options;
  if (raw.size.empty()) return;
  std::string size = raw.size;
  if (options.job == Job::kResize && (size[0] == '+' || size[0] == '-')) {
    options.resize_sign = size[0] == '+' ? 1 : -1;
    size.erase(0, 1);
  }
  options.size_bytes = ParseImageSize(size);
}

// The files of convert, and what does not go with several.
void FinishFiles(Raw& raw) {
  ImgOptions& options = raw.options;
  std::vector<std::string>& files = raw.files;
  if (files.size() < 2)
    throw UsageError("say what '" + files[0] + "' is to become, as in `bulkhead img convert FILE TARGET`");
  options.file = files.front();
  options.other = files.back();
  options.behind.assign(files.begin() + 1, files.end() - 1);
  if (options.behind.empty()) return;
  const auto refuse = [](const std::string& what) { throw UsageError(what + " does not go with several sources"); };
  if (!options.new_backing.empty()) refuse("a backing file of the target (-B, -o backing_file)");
  if (!options.snapshot_name.empty()) refuse("a snapshot (-l)");
  if (!options.backing.empty()) refuse("--backing");
}

ImgOptions Finish(Raw raw) {
  ImgOptions& options = raw.options;
  options.format = ParseImgFormat("-f", raw.format);
  options.other_format = ParseImgFormat(options.job == Job::kConvert ? "-O" : "-F", raw.other_format);
  for (const std::string& words : raw.words) ParseCreateWords(words, options);
  (void)ParseImgFormat("-F", options.new_backing_format);
  FinishSizes(raw);
  if (!raw.output.empty() && raw.output != "json" && raw.output != "human") {
    throw UsageError("--output: '" + raw.output + "' is neither human nor json");
  }
  options.json = options.json || raw.output == "json";
  if (!raw.sparse.empty()) options.zero_run_bytes = ParseImageSize(raw.sparse);
  if (options.zero_run_bytes % kSectorBytes != 0 || options.zero_run_bytes > uint64_t{1} << 30) {
    throw UsageError("-S: " + raw.sparse + " is not a multiple of 512 bytes up to 1G");
  }
  if (!raw.repair.empty()) {
    if (raw.repair != "leaks" && raw.repair != "all")
      throw UsageError("-r: '" + raw.repair + "' is neither leaks nor all");
    options.repair = raw.repair == "all" ? ImgOptions::Repair::kAll : ImgOptions::Repair::kLeaks;
  }
  const auto take = [&](const std::string& name, ImgOptions::Snapshot work) {
    if (name.empty()) return;
    options.snapshot = work;
    options.snapshot_name = name;
  };
  take(raw.create, ImgOptions::Snapshot::kCreate);
  take(raw.apply, ImgOptions::Snapshot::kApply);
  take(raw.remove, ImgOptions::Snapshot::kDelete);
  if (options.job == Job::kConvert) FinishFiles(raw);
  const bool makes = options.job == Job::kCreate || options.job == Job::kConvert;
  ImgFormat& made = options.job == Job::kCreate ? options.format : options.other_format;
  if (makes && made == ImgFormat::kDetect) made = ImgFormat::kRaw;
  if (makes && made == ImgFormat::kQcow) throw UsageError("images of format qcow can only be read; make a qcow2");
  if (makes && made == ImgFormat::kRaw && (!options.new_backing.empty() || options.compress)) {
    throw UsageError("a raw image has no backing file and is not compressed; give the format qcow2");
  }
  if (!options.new_backing.empty() && options.new_backing_format.empty()) {
    throw UsageError(
        "say the backing file's format with -F raw or -F qcow2: what its first bytes say, its guest may have written");
  }
  if (makes && !options.new_backing.empty() && options.preallocation != ImgOptions::Preallocation::kOff) {
    throw UsageError("-o preallocation: what is allocated would hide the backing file");
  }
  if (!options.backing.empty() && options.backing_from_header) {
    throw UsageError("give either --backing or --backing-from-header");
  }
  return options;
}

}  // namespace

ImgFormat ParseImgFormat(const std::string& option, const std::string& word) {
  if (word.empty()) return ImgFormat::kDetect;
  if (word == "raw") return ImgFormat::kRaw;
  if (word == "qcow2") return ImgFormat::kQcow2;
  if (word == "qcow") return ImgFormat::kQcow;
  throw UsageError(option + ": '" + word + "' is not a format known here; there are raw, qcow2 and (to read) qcow");
}

uint64_t ParseImageSize(const std::string& text) {
  static const std::map<char, unsigned> kShifts{{'b', 0},  {'B', 0},  {'k', 10}, {'K', 10}, {'M', 20},
                                                {'m', 20}, {'G', 30}, {'g', 30}, {'T', 40}, {'t', 40},
                                                {'P', 50}, {'p', 50}, {'E', 60}, {'e', 60}};
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  const auto left = static_cast<size_t>(end - parsed.ptr);
  const bool has_unit = left == 1 && kShifts.contains(*parsed.ptr);
  const unsigned shift = has_unit ? kShifts.at(*parsed.ptr) : 0;
  if (parsed.ec != std::errc() || (left != 0 && !has_unit) || value > UINT64_MAX >> shift) {
    throw UsageError("'" + text + "' is not a size; write it like 10G, 512M or a number of bytes");
  }
  return value << shift;
}

void ParseCreateWords(const std::string& text, ImgOptions& options) {
  size_t from = 0;
  while (from <= text.size()) {
    const size_t comma = std::min(text.find(',', from), text.size());
    const std::string word = text.substr(from, comma - from);
    const size_t equals = word.find('=');
    if (equals == std::string::npos) throw UsageError("-o: '" + word + "' is not like name=value");
    SetWord(word.substr(0, equals), word.substr(equals + 1), options);
    from = comma + 1;
  }
}

std::function<ImgOptions()> AddImgCommand(CLI::App& app, const std::function<void()>& chosen) {
  const auto raw = std::make_shared<Raw>();
  CLI::App* img = app.add_subcommand("img", "disk images: create, info, check, convert, resize, snapshot, map, ...");
  img->footer(kImgHelp);
  img->parse_complete_callback(chosen);
  const auto add = [img, raw](const char* name, const char* what, Job job) {
    CLI::App* added = img->add_subcommand(name, what);
    added->parse_complete_callback([raw, job] {
      raw->options.job = job;
      raw->chosen = true;
    });
    added->get_formatter()->column_width(28);
    return added;
  };
  AddCreate(*add("create", "make an image", Job::kCreate), *raw);
  AddConvert(*add("convert", "copy a disk into an image of any format", Job::kConvert), *raw);
  AddSnapshot(*add("snapshot", "the states of the disk that a qcow2 image keeps", Job::kSnapshot), *raw);
  AddRebase(*add("rebase", "put another file below an image", Job::kRebase), *raw);
  AddOthers(add, *raw);
  return [raw] {
    if (!raw->chosen)
      throw UsageError("say what to do with an image, as in `bulkhead img info FILE` (see `bulkhead img --help`)");
    return Finish(*raw);
  };
}

}  // namespace bulkhead::launcher
