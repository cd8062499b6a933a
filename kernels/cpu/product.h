// The product of some rows with a panel of weights, in float32.
#pragma once

#include <cstdint>

#ifndef DYNPRUNE_ISA
#error "DYNPRUNE_ISA (the namespace of this instruction set) is defined by CMakeLists.txt"
#endif

namespace dynprune::DYNPRUNE_ISA {

// product[rows, kPanel] (+)= input * `depth` rows of a panel as wide as `width`; rows is at most kRowTile. Takes
// scratch slots 2 and 3.
void multiply_panel(int64_t rows, int64_t width, int64_t depth, const float* input, int64_t stride, const float* panel,
                    float* product, bool accumulate);

// The depth that multiply_panel should be given at once, at least 1.
int64_t panel_block(int64_t rows, int64_t depth);

// Whether multiply_panel itself fetches weights ahead.
bool fetches_ahead(int64_t rows);

}  // namespace dynprune::DYNPRUNE_ISA
