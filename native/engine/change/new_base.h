// What a base that an image is to have must be like.
#pragma once

#include "engine/image/image_state.h"

namespace pcow {

// What a base reference to `spec` is to say; refused where this image cannot stand on it. With `structure` held.
Result<BaseReference> reference_to(const ImageState& state, const BaseSpec& spec);

}  // namespace pcow
