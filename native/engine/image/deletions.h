// Deletions that were begun: hidden layers are dropped, or merged into their only child (change/image_merge.cc says in which order). With
// `structure` held, without the gate.
#pragma once

#include "engine/image/image_state.h"

namespace pcow {

// An error: not all that could go are gone.
Result<void> collect(ImageState* image, const Progress& progress);
// The same before another change that must not meet a merge that was begun. `what`: that change, for people.
Result<void> finish_deletions(ImageState* image, const std::string& what);
// An operation has done its own work; `why` keeps an earlier deletion from being finished. That is noted, and is no failure of the
// operation, but for a failed sync: whoever waits for this operation would take what it has synced for durable.
Result<void> leave_unfinished(ImageState* image, const Error& why);
// Releases what a layer that is gone from the layer directory used: its table, and its blocks but for those that another table names.
// That can be the one of `heir` (null: none), or of a hidden layer below: what a merge from there, which was begun and not finished, has
// handed on.
Result<void> release_layer(ImageState* image, const Layer& gone, const Layer* heir);

}  // namespace pcow
