// Convolution in bfloat16 on the tiles of AMX, without gathering: an image lies in memory once, with zeros around it
// and its channels filled up to whole tiles, and what a tap reads for sixteen pixels in a row is one tile. Rows of
// pixels follow each other, the columns of padding between them, so that tiles run on across their ends; of few
// channels, and where the kernel takes larger steps, all that one of its rows reads lies together for each output
// pixel.
#pragma once

#include "bfloat16.h"

#if defined(DYNPRUNE_TILES)

namespace dynprune::DYNPRUNE_ISA {

// Sets p.block_rows, p.block_units and p.joined; the first is zero where gathering takes less time.
void plan_tile_conv2d(Bf16Params& p, int64_t threads);

// As bf16_range, for p.block_rows > 0.
void tile_conv2d_range(const Bf16Params& p, double* usage, int64_t begin, int64_t end);

}  // namespace dynprune::DYNPRUNE_ISA

#endif
