// Reads.
#include <algorithm>
#include <shared_mutex>

#include "engine/image/chain_reader.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

// A writer moves a block only rarely: a reader that must repeat this often is being fooled.
constexpr int kMovedRounds = 1000;

}  // namespace

// The writer may be another process, and may free a block and use it again between the look at its
// entry and the look at its data. `*moved` is true then, and what was read does not count.
Result<size_t> ActiveLayer::read_once(const View* view, uint64_t offset, void* buffer,
                                      size_t length, bool* moved) const {
  *moved = false;
  const uint64_t size = view ? view->size() : layers_.active_layer().size;
  if (offset >= size) return size_t{0};
  length = std::min<uint64_t>(length, size - offset);

  // A view may be of the active layer: until a snapshot freezes it, its entries are read as without
  // a view.
  const bool of_active = !view || view->layer() == layers_.directory().active;
  std::shared_ptr<const Chain> chain = layers_.shared_below();
  if (of_active && view) {
    if (auto layer = layers_.layer_in_view(*view); !layer) return layer.error();
  } else if (view) {
    auto built = layers_.chain_of(*view);
    if (!built) return built.error();
    chain = std::move(*built);
  }
  ChainReader reader(image_.geometry, *chain);
  Gatherer gatherer;
  // Entries of a table that another process may change.
  std::vector<std::pair<uint64_t, uint64_t>> used;
  auto* to = static_cast<char*>(buffer);
  const auto read_parts = [&]() -> Result<void> {
    for (size_t done = 0; done < length;) {
      const Part part = part_at(image_.geometry, offset + done, length - done);
      Entry own;
      if (of_active) {
        uint64_t word = layers_.active()->load(part.block);
        if (!image_.writable()) {
          used.emplace_back(part.block, word);
          // The host crashed under the writer: only durable sub-blocks count.
          if (layers_.only_durable()) word = Entry::unpack(word).as_durable().pack();
        }
        auto checked =
            checked_entry(word, image_.geometry, *image_.file, layers_.is_lazy(), part.block);
        if (!checked) return checked.error();
        own = *checked;
        if (own.remote && (own.written & image_.geometry.touched_mask(part.from, part.to)))
          return layers_.remote_in_active(part.block);
      }
      PCOW_TRY(reader.read(part, own, *image_.file, to + done, &gatherer));
      done += part.length();
    }
    return gatherer.flush();
  };
  const Result<void> outcome = read_parts();
  // Also after an error: the block may have been at the end of the file, which is shorter now.
  for (const auto& [block, word] : used)
    *moved |= Entry::unpack(word).index != Entry::unpack(layers_.active()->load(block)).index;
  return outcome ? Result<size_t>(length) : outcome.error();
}

Result<size_t> ActiveLayer::read(const View* view, uint64_t offset, void* buffer,
                                 size_t length) const {
  for (int round = 0; round < kMovedRounds; round++) {
    bool moved;
    auto count = read_once(view, offset, buffer, length, &moved);
    if (!moved) return count;
  }
  return Error(Code::kIo, image_.path + " changes faster than it can be read");
}

Result<size_t> Image::read(const View* view, uint64_t offset, void* buffer, size_t length) const {
  ImageState& state = *state_;
  // While this reads, another process may merge layers of a base, or write this image: what was
  // read counts only if no superblock of the chain has changed meanwhile.
  for (int round = 0; round < kStaleRounds; round++) {
    {
      const std::shared_lock lock(state.gate);
      if (state.layers.is_closed()) return state.closed_error();
      if (!state.layers.is_stale()) {
        auto count = state.active_layer.read(view, offset, buffer, length);
        // Mapping the table again does not help a second time.
        if (auto whole = state.layers.untorn(); !whole && (round || state.writable()))
          return state.failures.noted(Result<size_t>(whole.error()));
        if (!state.layers.is_stale()) return state.failures.noted(std::move(count));
      }
    }
    PCOW_TRY(state.failures.noted(state.layers.refresh()));
  }
  return state.failures.noted(
      Result<size_t>(Error(Code::kIo, state.path + " changes faster than it can be read")));
}

}  // namespace pcow
