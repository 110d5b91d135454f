// Comparing what an image holds with what a model of it says; each ends the program where they
// differ.
#pragma once

#include <string>

#include "check.h"

// The active layer (`view` null), or a snapshot.
void compare(const pcow::Image& image, const pcow::View* view, const Bytes& expected, const std::string& what);
// Whether the active layer is this.
bool reads_as(const pcow::Image& image, const Bytes& expected);
// Every byte is where a batch of the map says, and all up to the next batch is mapped. Returns
// where that begins.
uint64_t compare_batch(const pcow::Image& image, const pcow::View* view, uint64_t offset, const Bytes& expected,
                       const std::string& what);
// … for all batches.
void compare_map(const pcow::Image& image, const pcow::View* view, const Bytes& expected, const std::string& what);
// Outside of the listed changes two layers are equal. Returns the bytes that are listed.
uint64_t compare_changes(const pcow::Image& image, const pcow::View* from, const Bytes& before, const pcow::View* to,
                         const Bytes& after);
