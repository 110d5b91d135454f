// One page fault on a mapping of the image, from top to bottom:
//
//   serve()       finds the region, and checks whether the fault has already been served
//   serve_write() the sub-blocks become the image's own (engine/image/image_fault.cc); the mapper
//                 maps them
//   serve_read()  the image's own sub-blocks are mapped; all others become clean copies, or the
//                 sharing thread shows shared memory there (sharing.h)
//   fail()        the fault waits, or, if the image is damaged, raises SIGBUS
//
// All methods are called with the session's `handling` held.
#pragma once

#include <cstdint>

#include "attach/fault_descriptor.h"
#include "engine/image/image.h"
#include "monitor/base_ranges.h"
#include "monitor/clean_cache.h"
#include "monitor/mapper.h"
#include "monitor/region.h"
#include "monitor/sharing.h"
#include "monitor/stalls.h"
#include "monitor/statistics.h"

namespace pcow {

class FaultServer {
 public:
  FaultServer(Image* image, FaultDescriptor* faults, const RegionGeometry& geometry,
              const Regions& regions, BaseRanges* base, CleanCache* clean, Mapper* mapper,
              SharedBase* shared, SharingQueue* sharing, Stalls* stalls, Statistics* statistics,
              bool writable);

  // A fault that the sharing thread serves counts as served.
  enum class Outcome {
    kServed,
    kStalled,   // it must wait, and be served again
    kFetching,  // … because bytes are remote
  };
  Outcome serve(const Fault& fault);

 private:
  Region* region_at(const char* address) const;
  Result<void> serve_write(Region* region, uint64_t offset, FaultKind* kind);
  Result<void> serve_read(Region* region, uint64_t offset, const Fault& fault, FaultKind* kind);
  bool share(Region* region, uint64_t offset, const Fault& fault);
  void want_shared(Region* region, uint64_t offset);
  Outcome fail(Region* region, uint64_t offset, const Error& error);

  Image* const image_;
  FaultDescriptor* const faults_;
  const RegionGeometry geometry_;
  const Regions& regions_;
  BaseRanges* const base_;
  CleanCache* const clean_;
  Mapper* const mapper_;
  SharedBase* const shared_;
  SharingQueue* const sharing_;
  Stalls* const stalls_;
  Statistics* const statistics_;
  const bool writable_;

  uint64_t served_ns_ = 0;  // when the last fault had been served; monotonic
  bool busy_ = false;       // faults follow one another closely
};

}  // namespace pcow
