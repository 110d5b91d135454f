// One page fault on a mapping of the image, from top to bottom:
//
//   serve()       whose is it, and is it served already?
//   serve_write() the image makes the place its own (engine/image/image_fault.cc), and the mapper maps it
//   serve_read()  what is the image's own is mapped; of everything else a clean copy is made
//   fail()        the fault waits, or, where the image is damaged, its thread gets SIGBUS
//
// All with the session's `handling` held.
#pragma once

#include <cstdint>

#include "attach/fault_descriptor.h"
#include "engine/image/image.h"
#include "monitor/clean_cache.h"
#include "monitor/mapper.h"
#include "monitor/region.h"
#include "monitor/stalls.h"
#include "monitor/statistics.h"

namespace pcow {

struct Fault {
  char* address;
  bool write;
  uint64_t since_ns;  // when its event was read
};

class FaultServer {
 public:
  FaultServer(Image* image, FaultDescriptor* faults, const RegionGeometry& geometry, const Regions& regions,
              CleanCache* clean, Mapper* mapper, Stalls* stalls, Statistics* statistics, bool writable);

  // false: it must wait, and be served again.
  bool serve(const Fault& fault);

 private:
  Region* region_at(const char* address) const;
  Result<void> serve_write(Region* region, uint64_t offset, FaultKind* kind);
  Result<void> serve_read(Region* region, uint64_t offset, FaultKind* kind);
  bool fail(Region* region, uint64_t offset, const Error& error);

  Image* const image_;
  FaultDescriptor* const faults_;
  const RegionGeometry geometry_;
  const Regions& regions_;
  CleanCache* const clean_;
  Mapper* const mapper_;
  Stalls* const stalls_;
  Statistics* const statistics_;
  const bool writable_;

  uint64_t served_ns_ = 0;  // when the last fault had been served
  bool busy_ = false;       // faults follow one another
};

}  // namespace pcow
