// How images of a family get and lose their names, in the same order as in the commands.
#include <unistd.h>

#include <filesystem>

#include "engine/image/names.h"
#include "family.h"

using namespace pcow;

namespace crash {

void Family::change_files() {
  const auto is_alive = [](const Member& one) { return !one.orphaned; };
  const auto alive =
      std::ranges::count_if(members_, [&](const auto& one) { return is_alive(*one); });
  const uint64_t dice = below(3);
  if (dice == 0) return rename(some_member(is_alive));
  const auto is_free = [&](const Member& one) {
    return !is_stood_on(one) && (dice == 1 ? is_alive(one) : one.orphaned || alive > 1);
  };
  Member* const free = some_member(is_free);
  if (!free) return;
  dice == 1 ? replace(free) : remove_file(free);
}

void Family::change_name(Member* member, const std::string& what,
                         const std::function<Result<void>()>& change) {
  const std::string outer = std::exchange(run_->operation, member->path + ": " + what);
  naming_ = member;
  run_->must(change(), "it");
  naming_ = nullptr;
  run_->operation = outer;
}

void Family::add_clone(Member* base, const std::string& snapshot) {
  auto made = std::make_unique<Member>();
  Member* const clone = made.get();
  clone->path = (below(2) ? "elsewhere/clone" : "clone") + std::to_string(names_++) + ".pcow";
  clone->now.active = base->now.snapshots[snapshot];
  clone->base = base;
  clone->base_snapshot = snapshot;
  clone->busy = clone->is_passing = true;
  settle(clone, exactly(clone->now));
  CreateOptions options;
  options.has_base = true;
  // Relative, so that a state of the family finds its own base.
  options.base.path = std::filesystem::relative(place(base->path)).string();
  options.base.snapshot = snapshot;
  members_.push_back(std::move(made));
  change_name(clone, "create", [&] { return create_image(place(clone->path), options); });
  clone->is_passing = false;
  open(clone);
  clone->busy = false;
}

// As `pcow rename` (src/engine/rename.ts): the image has both names while the images that stand on
// it are updated. Sometimes the command is stopped in between, and given again.
void Family::rename(Member* member) {
  close(member);
  member->busy = true;
  const std::string from = member->path;
  const std::string to =
      (std::filesystem::path(from).parent_path() / ("renamed" + std::to_string(names_++) + ".pcow"))
          .string();
  member->second = to;
  change_name(member, "its new name", [&] { return add_name(place(from), place(to)); });
  member->path = to;
  member->second = from;
  std::vector<Member*> children;
  for (const auto& other : members_)
    if (other->base == member && !other->orphaned) children.push_back(other.get());
  for (Member* child : children) {
    tell_new_name(child, *member);
    if (below(4) == 0)
      change_name(member, "its new name again", [&] { return add_name(place(from), place(to)); });
  }
  change_name(member, "the old name goes", [&] { return remove_name(place(from)); });
  member->second.clear();
  open(member);
  member->busy = false;
}

void Family::tell_new_name(Member* child, const Member& base) {
  bool told = false;
  while (!told) {
    BaseSpec spec;
    spec.path = std::filesystem::relative(place(base.path)).string();
    spec.layer = child->image->info().base_layer;
    told = attempt(child, "is told the new name", child->now, {child->world},
                   [&] { return child->image->set_base(spec, true); });
  }
  settle(child, child->world);
}

// An image that has lost its base long ago may stay.
void Family::remove_file(Member* member) {
  if (member->image) close(member);
  member->reader = {};
  member->busy = member->is_passing = true;
  change_name(member, "its file goes", [&] { return remove_name(place(member->path)); });
  for (const auto& other : members_)
    if (other->base == member) other->base = nullptr;
  std::erase_if(members_, [&](const auto& one) { return one.get() == member; });
}

// A draft with an image that is unrelated to the one whose name it gets, as in `convert --force`;
// or, as in `import`, with bytes that were not synced.
std::string Family::filled_draft(const Member& member, Content* content, int* lock) {
  Draft draft = run_->must(make_draft(place(member.path)), "make a draft");
  CreateOptions options;
  options.into = true;
  options.size = member.now.active.size() * kSector;
  options.block_size = block_size_;
  run_->must(create_image(draft.path, options), "create in a draft");
  content->active.resize(member.now.active.size());
  auto image = run_->must(open_image(draft.path, true, nullptr), "open the draft");
  for (int i = 0; i < 6; i++) {
    uint64_t first, count;
    pick(member, &first, &count);
    run_->must(write_sectors(image.get(), content, first, count, run_), "write into the draft");
  }
  run_->must(image->close(), "close the draft");
  image.reset();
  if (below(2)) {
    const Bytes bytes = load(draft.path);
    ::close(draft.descriptor);
    unlink(draft.path.c_str());
    draft = run_->must(make_draft(place(member.path)), "make a draft");
    save(draft.path, bytes);
  }
  *lock = draft.descriptor;
  return draft.path;
}

void Family::replace(Member* member) {
  close(member);
  member->reader = {};
  member->busy = member->is_replaced = true;
  Content after;
  int lock = -1;
  const std::string draft = filled_draft(*member, &after, &lock);
  member->worlds = {exactly(member->now), exactly(after)};
  change_name(member, "is replaced", [&] { return give_name(draft, place(member->path), true); });
  ::close(lock);
  member->base = nullptr;
  member->now = after;
  settle(member, exactly(after));
  open(member);
  member->busy = member->is_replaced = false;
}

}  // namespace crash
