// Little-endian fields at fixed offsets of a byte buffer: used to read and write the structures of
// docs/format.md.
#pragma once

#include <cstdint>
#include <cstring>

namespace pcow {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "table entries are mapped: the host must be little-endian");

template <typename T>
T get_field(const uint8_t* bytes, size_t offset) {
  T value;
  memcpy(&value, bytes + offset, sizeof value);
  return value;
}

template <typename T>
void put_field(uint8_t* bytes, size_t offset, T value) {
  memcpy(bytes + offset, &value, sizeof value);
}

template <typename T>
constexpr T round_up(T value, T unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace pcow
