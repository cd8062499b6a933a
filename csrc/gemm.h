#pragma once

namespace dynprune {

// Whether the small products run on oneDNN's brgemm (false: BLAS).
bool has_brgemm();

// Whether bfloat16 is multiplied by this CPU's own instructions, AMX or AVX-512 (false: float32 products).
bool multiplies_bf16();

}  // namespace dynprune
