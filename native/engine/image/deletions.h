// Finishing deletions: hidden layers are dropped, or merged into their only child
// (change/image_merge.cc describes the order). The caller holds `structure`, and not the gate.
#pragma once

#include "engine/image/image_state.h"

namespace pcow {

// Deletes all hidden layers that can be deleted. An error: some of these are still there.
Result<void> collect(ImageState* image, const Progress& progress);
// The same before another change that must not meet an unfinished merge. `what`: that change, for
// messages.
Result<void> finish_deletions(ImageState* image, const std::string& what);
// For an operation that has done its own work, while `why` keeps an earlier deletion from being
// finished. The error is noted, and the operation succeeds. Only after a failed sync the operation
// fails too, because its caller would take for durable what the operation has synced.
Result<void> leave_unfinished(ImageState* image, const Error& why);
// Releases what a layer used that is no longer in the layer directory: its table, and its blocks
// except those that another table names. That can be the table of `heir` (null: none), or that of a
// hidden layer below, if an unfinished merge has handed blocks on from there.
Result<void> release_layer(ImageState* image, const Layer& gone, const Layer* heir);

}  // namespace pcow
