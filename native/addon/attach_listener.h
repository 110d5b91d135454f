// The mount's socket, to which monitors connect.
#pragma once

#include <string>

#include "attach/packet.h"
#include "engine/error.h"

namespace pcow::addon {

// A listening socket at `path`. It replaces a stale one. Everyone may connect to it.
Result<protocol::Descriptor> listen_at(const std::string& path);

}  // namespace pcow::addon
