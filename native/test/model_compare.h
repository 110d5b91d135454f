// Compares the content of an image with a model; each function ends the program if they differ.
#pragma once

#include <string>

#include "check.h"

// Compares the active layer (`view` null), or a snapshot.
void compare(const pcow::Image& image, const pcow::View* view, const Bytes& expected,
             const std::string& what);
// Whether the active layer reads like this.
bool reads_as(const pcow::Image& image, const Bytes& expected);
// Checks that every byte is where a batch of the map says, and that everything up to the next batch
// is mapped. Returns the offset of the next batch.
uint64_t compare_batch(const pcow::Image& image, const pcow::View* view, uint64_t offset,
                       const Bytes& expected, const std::string& what);
// … for all batches.
void compare_map(const pcow::Image& image, const pcow::View* view, const Bytes& expected,
                 const std::string& what);
// Checks that two layers are equal outside of the listed changes. Returns the number of listed
// bytes.
uint64_t compare_changes(const pcow::Image& image, const pcow::View* from, const Bytes& before,
                         const pcow::View* to, const Bytes& after);
