// Compares the content of an image with a model; each function ends the program if they differ.
#pragma once

#include <functional>
#include <string>

#include "check.h"

// Fetches what such an error says is missing, and returns true; false: that is impossible. For
// tests with lazy images.
inline std::function<bool(const pcow::Error&)> fetch_remote = [](const pcow::Error&) {
  return false;
};
// `what`, which is repeated as long as it lacks bytes that can be fetched.
template <typename Do>
auto with_remote(const Do& what) {
  auto outcome = what();
  while (!outcome && outcome.error().code == pcow::Code::kRemote && fetch_remote(outcome.error()))
    outcome = what();
  return outcome;
}

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
