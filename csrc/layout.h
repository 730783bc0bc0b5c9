// The layouts and dtypes (spec §2), one row each; the rows come from formats/floats.toml through the build.
#ifndef NEUZIP_LAYOUT_H
#define NEUZIP_LAYOUT_H

#include <cstdint>

namespace nz {

constexpr int kMaxWidth = 8;

struct Layout {
  int id;
  const char *name;
  int width;    // bytes a unit
  bool rotate;  // the sign moves below the leading mantissa bits (spec §3)
  bool joint;   // mode joint may be used (spec §4.6)
  bool planes;  // units are cut into planes at all
};

constexpr Layout kLayouts[] = {
#include "layouts.inc"
};

struct DType {
  int code;  // in a frame header (spec §5)
  int bits;  // of an element
  int layout;
};

constexpr DType kDTypes[] = {
#include "dtypes.inc"
};

// The dtype with this code, or null.
inline const DType *find_dtype(int code) {
  for (const DType &dtype : kDTypes)
    if (dtype.code == code) return &dtype;
  return nullptr;
}

// The layout with this id if its units are cut into planes, else null.
inline const Layout *find_layout(int32_t id) {
  for (const Layout &layout : kLayouts)
    if (layout.id == id && layout.planes) return &layout;
  return nullptr;
}

}  // namespace nz

#endif
