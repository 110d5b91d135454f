#include "addon/info_to_js.h"

#include <algorithm>
#include <cstdio>

#include "addon/errors.h"

namespace pcow::addon {

namespace {

// In place of an ExtentKind: data whose bytes are remote.
constexpr double kRemoteData = 3;

Napi::Value string_or_null(Napi::Env env, const std::string& text) {
  return text.empty() ? env.Null() : Napi::String::New(env, text);
}

Napi::Value milliseconds(Napi::Env env, int64_t time_ns) {
  return Napi::Number::New(env, static_cast<double>(time_ns / 1'000'000));
}

// 16 hexadecimal digits, because a JavaScript number does not have enough bits.
std::string identity_text(uint64_t identity) {
  char digits[17];
  snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(identity));
  return digits;
}

Napi::Value base_to_js(Napi::Env env, const ImageInfo& info) {
  if (!info.has_base) return env.Null();
  auto base = Napi::Object::New(env);
  base.Set("path", info.base_path);
  base.Set("resolved", info.base_resolved);
  base.Set("uuid", info.base_uuid);
  base.Set("layer", number(env, info.base_layer));
  base.Set("snapshot", string_or_null(env, info.base_snapshot));
  return base;
}

Napi::Value holder_to_js(Napi::Env env, bool is_there, const Holder& holder) {
  if (!is_there) return env.Null();
  auto object = Napi::Object::New(env);
  object.Set("pid", number(env, holder.pid));
  object.Set("startTime", number(env, holder.start_time));
  object.Set("command", holder.command);
  object.Set("host", holder.host.empty() ? env.Null() : Napi::String::New(env, holder.host));
  return object;
}

const char* severity_name(Severity severity) {
  switch (severity) {
    case Severity::kNote: return "note";
    case Severity::kLeak: return "leak";
    case Severity::kDamage: return "damage";
  }
  return "damage";
}

}  // namespace

Napi::Value chain_to_js(Napi::Env env, const std::vector<LayerRef>& chain, size_t count) {
  auto list = Napi::Array::New(env, count);
  for (uint32_t i = 0; i < count; ++i) {
    auto link = Napi::Object::New(env);
    link.Set("path", chain[i].path);
    link.Set("snapshot", string_or_null(env, chain[i].snapshot));
    link.Set("layer", number(env, chain[i].layer));
    list.Set(i, link);
  }
  return list;
}

Napi::Value last_error_to_js(Napi::Env env, const std::optional<LastError>& last) {
  if (!last) return env.Null();
  auto object = Napi::Object::New(env);
  object.Set("time", milliseconds(env, last->time_ns));
  object.Set("error", error_to_js(env, last->error));
  return object;
}

Napi::Value info_to_js(Napi::Env env, const ImageInfo& info) {
  auto object = Napi::Object::New(env);
  object.Set("path", info.path);
  object.Set("uuid", info.uuid);
  object.Set("formatVersion", number(env, info.format_version));
  object.Set("size", number(env, info.size));
  object.Set("blockSize", number(env, info.block_size));
  object.Set("subBlockSize", number(env, info.sub_block_size));
  object.Set("fileSize", number(env, info.file_size));
  object.Set("diskUse", number(env, info.disk_use));
  object.Set("lazy", info.lazy);
  object.Set("standsOnLazy", info.stands_on_lazy);
  object.Set("persistent", info.persistent);
  object.Set("kernelWrites", number(env, info.kernel_writes));
  object.Set("kernelSyncs", number(env, info.kernel_syncs));
  object.Set("clean", info.clean);
  object.Set("writable", info.writable);
  object.Set("generation", number(env, info.generation));
  object.Set("snapshots", number(env, info.snapshots));
  object.Set("base", base_to_js(env, info));
  object.Set("chain", chain_to_js(env, info.chain, info.chain.size()));
  object.Set("holder", holder_to_js(env, info.has_holder, info.holder));
  object.Set("opener", holder_to_js(env, info.has_opener, info.opener));
  object.Set("lastError", last_error_to_js(env, info.last_error));
  return object;
}

Napi::Value snapshot_to_js(Napi::Env env, const SnapshotInfo& snapshot) {
  auto object = Napi::Object::New(env);
  object.Set("name", snapshot.name);
  object.Set("id", number(env, snapshot.id));
  object.Set("identity", identity_text(snapshot.identity));
  object.Set("parent", string_or_null(env, snapshot.parent));
  object.Set("created", milliseconds(env, snapshot.time_ns));
  object.Set("size", number(env, snapshot.size));
  object.Set("children", number(env, snapshot.children));
  object.Set("automatic", snapshot.automatic);
  object.Set("current", snapshot.current);
  object.Set("data", number(env, snapshot.data));
  return object;
}

Napi::Value layer_to_js(Napi::Env env, const LayerInfo& layer) {
  auto object = Napi::Object::New(env);
  object.Set("id", number(env, layer.id));
  object.Set("parent", layer.parent ? number(env, layer.parent) : env.Null());
  object.Set("name", string_or_null(env, layer.name));
  object.Set("hidden", layer.hidden);
  object.Set("active", layer.active);
  object.Set("identity",
             layer.active ? env.Null() : Napi::String::New(env, identity_text(layer.identity)));
  object.Set("created", milliseconds(env, layer.time_ns));
  object.Set("size", number(env, layer.size));
  return object;
}

// One flat array of numbers, because a batch may have thousands of extents.
Napi::Value extents_to_js(Napi::Env env, const ExtentBatch& batch) {
  auto numbers = Napi::Float64Array::New(env, batch.extents.size() * 5);
  double* at = numbers.Data();
  uint64_t deepest = 0;
  for (const MapExtent& extent : batch.extents) {
    *at++ = static_cast<double>(extent.offset);
    *at++ = static_cast<double>(extent.length);
    *at++ = extent.remote ? kRemoteData : static_cast<double>(extent.kind);
    *at++ = static_cast<double>(extent.depth);
    *at++ = static_cast<double>(extent.file_offset);
    deepest = std::max(deepest, extent.depth);
  }
  auto object = Napi::Object::New(env);
  object.Set("extents", numbers);
  object.Set("next", number(env, batch.next));
  object.Set("size", number(env, batch.size));
  object.Set("chain",
             chain_to_js(env, batch.chain, std::min<size_t>(batch.chain.size(), deepest + 1)));
  object.Set("chainState", identity_text(batch.chain_state));
  return object;
}

Napi::Value findings_to_js(Napi::Env env, const std::vector<Finding>& findings) {
  auto list = Napi::Array::New(env, findings.size());
  for (uint32_t i = 0; i < findings.size(); ++i) {
    const Finding& finding = findings[i];
    auto object = Napi::Object::New(env);
    object.Set("severity", severity_name(finding.severity));
    object.Set("structure", finding.structure);
    object.Set("message", finding.message);
    object.Set("place", number(env, finding.file_offset));
    object.Set("layer", finding.layer ? number(env, finding.layer) : env.Null());
    object.Set("snapshot",
               finding.snapshot.empty() ? env.Null() : Napi::String::New(env, finding.snapshot));
    object.Set("offset", finding.length ? number(env, finding.offset) : env.Null());
    object.Set("length", finding.length ? number(env, finding.length) : env.Null());
    object.Set("repaired", finding.repaired);
    list.Set(i, object);
  }
  return list;
}

Napi::Value losses_to_js(Napi::Env env, const std::vector<Loss>& losses) {
  auto list = Napi::Array::New(env, losses.size());
  for (uint32_t i = 0; i < losses.size(); ++i) {
    const Loss& loss = losses[i];
    auto object = Napi::Object::New(env);
    object.Set("layer", number(env, loss.layer));
    object.Set("snapshot", string_or_null(env, loss.snapshot));
    object.Set("gone", number(env, loss.gone));
    object.Set("doubtful", number(env, loss.doubtful));
    auto ranges = Napi::Array::New(env, loss.ranges.size());
    for (uint32_t n = 0; n < loss.ranges.size(); ++n) {
      auto range = Napi::Object::New(env);
      range.Set("offset", number(env, loss.ranges[n].offset));
      range.Set("length", number(env, loss.ranges[n].length));
      range.Set("certain", loss.ranges[n].certain);
      ranges.Set(n, range);
    }
    object.Set("ranges", ranges);
    list.Set(i, object);
  }
  return list;
}

Napi::Value scrub_to_js(Napi::Env env, const ScrubReport& report) {
  auto object = Napi::Object::New(env);
  object.Set("path", report.path);
  object.Set("verified", number(env, report.verified));
  object.Set("damages", number(env, report.damages));
  object.Set("findings", findings_to_js(env, report.findings));
  auto layers = Napi::Array::New(env, report.layers.size());
  for (uint32_t i = 0; i < report.layers.size(); ++i) {
    const ScrubbedLayer& layer = report.layers[i];
    auto entry = Napi::Object::New(env);
    entry.Set("layer", number(env, layer.id));
    entry.Set("snapshot", string_or_null(env, layer.snapshot));
    entry.Set("covered", number(env, layer.covered));
    entry.Set("missing", number(env, layer.missing));
    layers.Set(i, entry);
  }
  object.Set("layers", layers);
  return object;
}

}  // namespace pcow::addon
