// Checks a base that an image is to stand on.
#pragma once

#include "engine/image/image_state.h"

namespace pcow {

// The reference that names `spec` as this image's base. An error if the image cannot stand on it.
// The caller holds `structure`.
Result<BaseReference> reference_to(const ImageState& state, const BaseSpec& spec);

}  // namespace pcow
