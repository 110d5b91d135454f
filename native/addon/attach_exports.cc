#include "addon/attach_exports.h"

#include <sys/sysmacros.h>

#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/errors.h"

namespace pcow::addon {

namespace {

const char* kind_name(AttachEvent::Kind kind) {
  switch (kind) {
    case AttachEvent::Kind::kAttach: return "attach";
    case AttachEvent::Kind::kResume: return "resume";
    case AttachEvent::Kind::kHandedOver: return "handed over";
    case AttachEvent::Kind::kAnswer: return "answer";
    case AttachEvent::Kind::kRelease: return "release";
    case AttachEvent::Kind::kWant: return "want";
    case AttachEvent::Kind::kFetch: return "fetch";
    case AttachEvent::Kind::kOpened: return "opened";
    case AttachEvent::Kind::kLooked: return "looked";
    case AttachEvent::Kind::kClosed: return "closed";
  }
  return "";
}

// Sets only the fields of the event's kind: NativeAttachEvent.
Napi::Object event_to_js(Napi::Env env, const AttachEvent& event) {
  auto object = Napi::Object::New(env);
  const auto number = [&](const char* name, uint64_t value) {
    object.Set(name, Napi::Number::New(env, static_cast<double>(value)));
  };
  object.Set("kind", kind_name(event.kind));
  number("connection", event.connection);
  switch (event.kind) {
    case AttachEvent::Kind::kAttach:
      object.Set("writable", event.wants_write);
      object.Set("device",
                 std::to_string(major(event.device)) + ":" + std::to_string(minor(event.device)));
      object.Set("inode", Napi::BigInt::New(env, event.inode));
      number("flags", event.flags);
      break;
    case AttachEvent::Kind::kResume:
      object.Set("identity", std::to_string(event.device) + ":" + std::to_string(event.inode));
      object.Set("uuid", event.text);
      break;
    case AttachEvent::Kind::kRelease:
    case AttachEvent::Kind::kWant: return object;
    case AttachEvent::Kind::kLooked: number("id", event.id); return object;
    case AttachEvent::Kind::kFetch:
      number("id", event.id);
      object.Set("text", event.text);
      return object;
    case AttachEvent::Kind::kAnswer: number("id", event.id); [[fallthrough]];
    case AttachEvent::Kind::kOpened:
    case AttachEvent::Kind::kHandedOver:
      object.Set("ok", event.ok);
      number("errno", static_cast<uint64_t>(event.err));
      [[fallthrough]];
    case AttachEvent::Kind::kClosed: object.Set("text", event.text); return object;
  }
  number("pid", event.pid);
  number("uid", event.uid);
  return object;
}

// `env` is null when the environment is shutting down.
void deliver(Napi::Env env, Napi::Function on_event, AttachEvent* given) {
  const std::unique_ptr<AttachEvent> event(given);
  if (static_cast<napi_env>(env) != nullptr) on_event.Call({event_to_js(env, *event)});
}

// JavaScript uses names for requests (NativeRequestName); only the protocol knows their numbers.
protocol::Kind request_of(const std::string& name) {
  if (name == "prepare") return protocol::Kind::kPrepare;
  if (name == "cut") return protocol::Kind::kCut;
  if (name == "commit") return protocol::Kind::kCommit;
  if (name == "finish") return protocol::Kind::kFinish;
  if (name == "abort") return protocol::Kind::kAbort;
  if (name == "delete") return protocol::Kind::kDelete;
  if (name == "sync") return protocol::Kind::kSync;
  if (name == "rename") return protocol::Kind::kRename;
  if (name == "may fetch") return protocol::Kind::kMayFetch;
  if (name == "store") return protocol::Kind::kStore;
  return protocol::Kind::kStatus;
}

AttachCommand command_for(AttachCommand::Kind kind, const Napi::CallbackInfo& info) {
  AttachCommand command;
  command.kind = kind;
  command.connection = bytes_of(info[0]);
  return command;
}

}  // namespace

Napi::Function AttachServerWrap::define(Napi::Env env) {
  return DefineClass(env, "AttachServer",
                     {
                         InstanceMethod<&AttachServerWrap::hand_over>("handOver"),
                         InstanceMethod<&AttachServerWrap::confirm>("confirm"),
                         InstanceMethod<&AttachServerWrap::refuse>("refuse"),
                         InstanceMethod<&AttachServerWrap::request>("request"),
                         InstanceMethod<&AttachServerWrap::give_bases>("giveBases"),
                         InstanceMethod<&AttachServerWrap::share>("share"),
                         InstanceMethod<&AttachServerWrap::store>("store"),
                         InstanceMethod<&AttachServerWrap::fetched>("fetched"),
                         InstanceMethod<&AttachServerWrap::released>("released"),
                         InstanceMethod<&AttachServerWrap::look>("look"),
                         InstanceMethod<&AttachServerWrap::close>("close"),
                         InstanceMethod<&AttachServerWrap::stop>("stop"),
                     });
}

AttachServerWrap::AttachServerWrap(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<AttachServerWrap>(info) {
  auto events =
      Napi::ThreadSafeFunction::New(info.Env(), info[2].As<Napi::Function>(), "pcow attach", 0, 1);
  events.Unref(info.Env());
  auto server =
      AttachServer::start(text_of(info[0]), bytes_of(info[1]), [events](AttachEvent event) {
        auto carried = std::make_unique<AttachEvent>(std::move(event));
        if (events.NonBlockingCall(carried.get(), deliver) == napi_ok) carried.release();
      });
  if (!server) {
    events.Release();
    throw_in_js(info.Env(), server.error());
    return;
  }
  server_ = *server;
  // Clean-up hooks run in reverse order, so this hook runs before the one that closes `events`.
  info.Env().AddCleanupHook([server = server_] { server->stop(); });
}

// `connection`, `paths`, `write`.
void AttachServerWrap::hand_over(const Napi::CallbackInfo& info) {
  AttachCommand command = command_for(AttachCommand::Kind::kHandOver, info);
  command.paths = texts_of(info[1]);
  command.write = flag_of(info[2]);
  server_->command(std::move(command));
}

// `connection`.
void AttachServerWrap::confirm(const Napi::CallbackInfo& info) {
  server_->command(command_for(AttachCommand::Kind::kConfirm, info));
}

// `connection`, `errno`, `text`.
void AttachServerWrap::refuse(const Napi::CallbackInfo& info) {
  AttachCommand command = command_for(AttachCommand::Kind::kRefuse, info);
  command.err = info[1].ToNumber().Int32Value();
  command.text = text_of(info[2]);
  server_->command(std::move(command));
}

// `connection`, `id`, `name`, `value`, `text`.
void AttachServerWrap::request(const Napi::CallbackInfo& info) {
  AttachCommand command = command_for(AttachCommand::Kind::kRequest, info);
  command.id = info[1].ToNumber().Uint32Value();
  command.request = request_of(text_of(info[2]));
  command.value = info[3].ToNumber().Uint32Value();
  command.text = text_of(info[4]);
  server_->command(std::move(command));
}

// `connection`, `id`, `paths`.
void AttachServerWrap::give_bases(const Napi::CallbackInfo& info) {
  AttachCommand command = command_for(AttachCommand::Kind::kGiveBases, info);
  command.id = info[1].ToNumber().Uint32Value();
  command.paths = texts_of(info[2]);
  server_->command(std::move(command));
}

// `connection`, `path`, `layer`, `root`.
void AttachServerWrap::share(const Napi::CallbackInfo& info) {
  AttachCommand command = command_for(AttachCommand::Kind::kShare, info);
  command.layer = {text_of(info[1]), bytes_of(info[2]), text_of(info[3])};
  server_->command(std::move(command));
}

Napi::Value AttachServerWrap::store(const Napi::CallbackInfo& info) {
  const CleanStore::Figures figures = server_->store_figures();
  auto object = Napi::Object::New(info.Env());
  const auto number = [&](const char* name, uint64_t value) {
    object.Set(name, Napi::Number::New(info.Env(), static_cast<double>(value)));
  };
  number("budget", figures.budget);
  number("bytes", figures.bytes);
  number("segments", figures.segments);
  number("clients", figures.clients);
  number("given", figures.given);
  number("refused", figures.refused);
  return object;
}

// `connection`, `id`, `why`.
void AttachServerWrap::fetched(const Napi::CallbackInfo& info) {
  AttachCommand command = command_for(AttachCommand::Kind::kFetched, info);
  command.id = info[1].ToNumber().Uint32Value();
  command.text = text_of(info[2]);
  server_->command(std::move(command));
}

// `connection`.
void AttachServerWrap::released(const Napi::CallbackInfo& info) {
  server_->command(command_for(AttachCommand::Kind::kReleased, info));
}

// `connection`, `id`.
void AttachServerWrap::look(const Napi::CallbackInfo& info) {
  AttachCommand command = command_for(AttachCommand::Kind::kLook, info);
  command.id = info[1].ToNumber().Uint32Value();
  server_->command(std::move(command));
}

// `connection`, `why`.
void AttachServerWrap::close(const Napi::CallbackInfo& info) {
  AttachCommand command = command_for(AttachCommand::Kind::kClose, info);
  command.text = text_of(info[1]);
  server_->command(std::move(command));
}

void AttachServerWrap::stop(const Napi::CallbackInfo&) { server_->stop(); }

}  // namespace pcow::addon
