// The socket of a mount that monitors connect to.
#pragma once

#include <string>

#include "attach/packet.h"
#include "engine/error.h"

namespace pcow::addon {

// A listening socket at `path`, in place of a stale one, that everybody may connect to.
Result<protocol::Descriptor> listen_at(const std::string& path);

}  // namespace pcow::addon
