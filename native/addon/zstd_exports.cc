#include "addon/zstd_exports.h"

#include <zstd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/promise_task.h"
#include "engine/error.h"

namespace pcow::addon {

namespace {

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

// One context for each thread of the lane: making one takes longer than compressing a piece.
template <typename Context>
Context* context_of_thread(Context* (*make)()) {
  thread_local std::unique_ptr<Context, FreeContext> context(make());
  return context.get();
}

Error damaged(const char* why) {
  return Error(Code::kCorrupt, std::string("a compressed piece is damaged: ") + why);
}

// Worker thread. Makes one frame, with its content size in the header and without a checksum, as
// docs/registry.md specifies. The same library and level always give the same bytes.
Result<size_t> compress(const uint8_t* bytes, size_t length, uint8_t* into, size_t room,
                        int level) {
  ZSTD_CCtx* context = context_of_thread(&ZSTD_createCCtx);
  if (context == nullptr) return Error(Code::kNoMemory, "no memory to compress a piece");
  const size_t size = ZSTD_compressCCtx(context, into, room, bytes, length, level);
  if (ZSTD_isError(size))
    return Error(Code::kInvalid, std::string("can't compress: ") + ZSTD_getErrorName(size));
  return size;
}

// Worker thread. Never writes more than `expected` bytes, whatever the frame says: the library
// decompresses straight into them, and needs no window of its own.
Result<size_t> decompress(const uint8_t* bytes, size_t length, uint8_t* into, size_t expected) {
  if (ZSTD_findFrameCompressedSize(bytes, length) != length)
    return damaged("it is not one zstd frame");
  if (ZSTD_getFrameContentSize(bytes, length) != expected)
    return damaged("it has another size than its index says");
  ZSTD_DCtx* context = context_of_thread(&ZSTD_createDCtx);
  if (context == nullptr) return Error(Code::kNoMemory, "no memory to decompress a piece");
  const size_t size = ZSTD_decompressDCtx(context, into, expected, bytes, length);
  if (ZSTD_isError(size)) return damaged(ZSTD_getErrorName(size));
  if (size != expected) return damaged("it ends too early");
  return size;
}

Napi::Value start_zstd(const Napi::CallbackInfo& info, PromiseTask<size_t>::Work work) {
  auto task = std::make_unique<PromiseTask<size_t>>(info.Env(), std::move(work));
  auto both = Napi::Array::New(info.Env(), 2);
  both.Set(uint32_t{0}, info[0]);
  both.Set(uint32_t{1}, info[1]);
  task->keep(both);
  return start(*Environment::of(info.Env()).queue, Lane::kBytes, std::move(task));
}

// `bytes`, `into` (with room for the worst case), `level`. Resolves with the length of the frame.
Napi::Value zstd_compress(const Napi::CallbackInfo& info) {
  auto from = info[0].As<Napi::Uint8Array>();
  auto into = info[1].As<Napi::Uint8Array>();
  return start_zstd(info, [bytes = from.Data(), length = from.ByteLength(), out = into.Data(),
                           room = into.ByteLength(), level = info[2].ToNumber().Int32Value()] {
    return compress(bytes, length, out, room, level);
  });
}

// `bytes`, `into`: exactly as long as the content of the frame.
Napi::Value zstd_decompress(const Napi::CallbackInfo& info) {
  auto from = info[0].As<Napi::Uint8Array>();
  auto into = info[1].As<Napi::Uint8Array>();
  return start_zstd(info,
                    [bytes = from.Data(), length = from.ByteLength(), out = into.Data(),
                     room = into.ByteLength()] { return decompress(bytes, length, out, room); });
}

// `length`. Returns the most bytes to which compression can enlarge so many.
Napi::Value zstd_bound(const Napi::CallbackInfo& info) {
  return Napi::Number::New(
      info.Env(), static_cast<double>(ZSTD_compressBound(static_cast<size_t>(bytes_of(info[0])))));
}

}  // namespace

void export_zstd(Napi::Env env, Napi::Object exports) {
  exports.Set("zstdCompress", Napi::Function::New<zstd_compress>(env, "zstdCompress"));
  exports.Set("zstdDecompress", Napi::Function::New<zstd_decompress>(env, "zstdDecompress"));
  exports.Set("zstdBound", Napi::Function::New<zstd_bound>(env, "zstdBound"));
}

}  // namespace pcow::addon
